"""A command's connection to a node of this machine: one blocking socket, a few questions."""

from __future__ import annotations

import array
import os
import socket
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from lattica.cli.where import data_dir_option, node_of, node_to_look_at
from lattica.codec import frames
from lattica.codec.messages import (
    PROTOCOL,
    FromNode,
    Hello,
    MeshAnswer,
    MeshRequest,
    Refused,
    Shutdown,
    State,
    StateRequest,
    Welcome,
)
from lattica.errors import ConfigError, LatticaError, PeerUnreachableError, RemoteProtocolError
from lattica.node.paths import NodeFile

ANSWER_WAIT_S = 5.0
"""How long a node may take to answer; one that serves answers in milliseconds, unless its machine is swapping."""
MESH_WAIT_S = 40.0
"""How long a question may take that the node must ask other machines: they are given 15 s each, two in turn."""
READ_BYTES = 64 << 10
FDS_MAX = 4  # one comes with `Welcome`
__all__ = ["NodeConnection", "data_dir_option", "node_of", "node_to_look_at"]


class NodeConnection:
    """Connected to a node as a command.

    Every verb raises PeerUnreachableError if the node does not answer, ConfigError if it refuses us.
    """

    def __init__(self, node: NodeFile, *, answer_wait_s: float = ANSWER_WAIT_S) -> None:
        self.node = node
        self._decoder = frames.Decoder(FromNode)
        self._inbox: list[Any] = []
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(answer_wait_s)
        try:
            self._call(lambda: self._sock.connect(node.socket))
            self._send(Hello(PROTOCOL, os.getpid(), "command", sys.executable))
            answer = self._next()
            if isinstance(answer, Refused):
                raise ConfigError(f"the node (pid {node.pid}) refuses this command: {answer.reason}")
            if not isinstance(answer, Welcome):
                raise RemoteProtocolError(f"a node's first word is Welcome or Refused, not {type(answer).__name__}")
        except BaseException:
            self._sock.close()
            raise

    def state(self, what: str) -> Any:
        """What the node says of itself: plain data. `what`: as in `StateRequest`."""
        self._send(StateRequest(1, what))
        while not isinstance(answer := self._next(), State):
            pass
        return answer.data

    def mesh(self, verb: str, *, answer_wait_s: float = MESH_WAIT_S, **data: object) -> Any:
        """What the node answers of its mesh: plain data. verb: as in `lattica.node.mesh_desk`.

        Raises what the node raised, too.
        """
        self._sock.settimeout(answer_wait_s)
        self._send(MeshRequest(1, verb, data))
        while not isinstance(answer := self._next(), MeshAnswer):
            pass
        if answer.error:
            raise LatticaError.from_data(answer.error)
        return answer.data

    def shutdown(self) -> None:
        """Ask the node to end."""
        self._send(Shutdown(node=True))

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: msgspec.Struct) -> None:
        self._call(lambda: self._sock.sendall(frames.encode([message])))

    def _next(self) -> Any:
        """The next message; descriptors that come with it are closed: a command reads no objects."""
        while not self._inbox:
            data, ancillary, _, _ = self._call(
                lambda: self._sock.recvmsg(READ_BYTES, socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC)
            )
            for _, _, payload in ancillary:
                descriptors = array.array("i")
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
                for descriptor in descriptors:
                    os.close(descriptor)
            if not data:
                raise self._unreachable("it closed the connection")
            self._inbox = self._decoder.feed(data)
        return self._inbox.pop(0)

    def _call(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except TimeoutError:
            raise self._unreachable(f"no answer within {self._sock.gettimeout():g} s") from None
        except OSError as error:
            raise self._unreachable(error.strerror or str(error)) from error

    def _unreachable(self, why: str) -> PeerUnreachableError:
        return PeerUnreachableError(
            f"the node (pid {self.node.pid}) does not answer at {self.node.socket}: {why}",
            do_next="read its log (node.log in the data directory), or end it with `lattica stop --force`",
        )
