"""A node that only answers, in a thread of the test."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lattica.codec import frames
from lattica.codec import messages as m
from lattica.errors import LatticaError
from lattica.node import paths
from lattica.node.paths import NodeFile


class FakeNode:
    """Listens in `folder`, welcomes commands, answers StateRequest from `states` and MeshRequest from `mesh` (an error
    is raised by the command, a function is asked), and notes what it was told."""

    def __init__(self, folder: Path, *, pid: int | None = None, refusal: str = "") -> None:
        self.states: dict[str, Any] = {}
        self.mesh: dict[str, Any] = {}
        self.hangs_up_at = ""  # a verb at which it closes the connection
        self.heard: list[Any] = []
        self.refusal = refusal
        self.told_to_end: Callable[[], None] = lambda: None
        path = str(folder / "node.sock")
        pid = pid or os.getpid()
        self.file = NodeFile(pid, paths.process_birth(pid), path, "ab" * 16, "0.1.0", str(folder / "sessions/1-1"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        decoder = frames.Decoder(m.FromClient)
        while data := sock.recv(4096):
            for message in decoder.feed(data):
                self.heard.append(message)
                match message:
                    case m.Hello() if self.refusal:
                        sock.sendall(frames.encode([m.Refused(self.refusal)]))
                    case m.Hello():
                        self._welcome(sock)
                    case m.StateRequest(request=request, what=what):
                        sock.sendall(frames.encode([m.LogLines("x", 1, 1, ["noise"]), self._state(request, what)]))
                    case m.MeshRequest(verb=verb) if verb == self.hangs_up_at:
                        return
                    case m.MeshRequest(request=request, verb=verb, data=data):
                        sock.sendall(
                            frames.encode([m.LogLines("x", 1, 1, ["noise"]), self._answer(request, verb, data)])
                        )
                    case m.Shutdown(node=True):
                        self.told_to_end()

    def asked(self, verb: str) -> dict[str, Any]:
        """What came with the last request of this verb."""
        found: dict[str, Any] = [one.data for one in self.heard if getattr(one, "verb", "") == verb][-1]
        return found

    def _answer(self, request: int, verb: str, data: dict[str, Any]) -> m.MeshAnswer:
        answer = self.mesh.get(verb)
        if callable(answer):
            answer = answer(data)
        if isinstance(answer, LatticaError):
            return m.MeshAnswer(request, None, dict(answer.to_data()))
        return m.MeshAnswer(request, answer)

    def _state(self, request: int, what: str) -> m.State:
        return m.State(request, self.states.get(what))

    def _welcome(self, sock: socket.socket) -> None:
        """In two pieces, as a busy socket may give it, with the arena's descriptor on the first."""
        frame = bytes(frames.encode([m.Welcome(9, 0, bytes(16), "/session", 1 << 20)]))
        arena = os.memfd_create("arena")
        socket.send_fds(sock, [frame[:5]], [arena])
        sock.sendall(frame[5:])
        os.close(arena)
