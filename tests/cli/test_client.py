"""A command's connection to its node."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from lattica.cli.client import NodeConnection, node_of
from lattica.codec import messages as m
from lattica.errors import ConfigError, PeerUnreachableError
from tests.cli.fake_node import FakeNode


def test_a_question_is_answered_and_no_descriptor_is_kept(node: FakeNode) -> None:
    node.states["resources"] = {"total": {"CPU": 4}}
    with NodeConnection(node.file) as connection:
        assert connection.state("resources") == {"total": {"CPU": 4}}
    with os.scandir("/proc/self/fd") as entries:
        assert not [entry for entry in entries if "memfd:arena" in os.path.realpath(entry.path)]
    hello = node.heard[0]
    assert (hello.kind, hello.protocol, hello.pid) == ("command", m.PROTOCOL, os.getpid())


def test_a_node_that_is_gone_is_unreachable_with_the_reason_and_the_way_on(node: FakeNode) -> None:
    with pytest.raises(PeerUnreachableError, match="No such file") as gone:
        NodeConnection(replace(node.file, socket=node.file.socket + ".gone"))
    assert "lattica stop --force" in str(gone.value)


def test_a_node_that_is_stopped_is_unreachable_after_a_while(data_dir: Path, node: FakeNode) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(data_dir / "deaf.sock"))
        deaf.listen()
        with pytest.raises(PeerUnreachableError, match=r"no answer within 0\.01 s"):
            NodeConnection(replace(node.file, socket=str(data_dir / "deaf.sock")), answer_wait_s=0.01)


def test_a_node_that_refuses_is_quoted(node: FakeNode) -> None:
    node.refusal = "protocol 1 meets protocol 2: update this side"
    with pytest.raises(ConfigError, match="update this side"):
        NodeConnection(node.file)


def test_without_a_node_the_command_says_how_to_start_one(data_dir: Path) -> None:
    with pytest.raises(ConfigError, match="lattica start"):
        node_of(str(data_dir))


def test_the_named_node_is_meant_and_not_that_of_the_environment(node: FakeNode, data_dir: Path) -> None:
    assert node_of(None) == node.file
    with pytest.raises(ConfigError, match="elsewhere"):
        node_of(str(data_dir / "elsewhere"))
