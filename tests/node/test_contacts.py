"""Whom a node remembers, for how long it leaves a silent peer alone, and what it makes of a file that is damaged."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from lattica.mesh.identity import PeerId, peer_text
from lattica.node.contacts import (
    CONTACTS_MAX,
    FILE_MAX_BYTES,
    RETRY_S,
    Contacts,
    contacts_path,
    remove_contacts,
    write_contacts,
)

MESH = b"m" * 32


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32))


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "mesh").mkdir()
    return contacts_path(str(tmp_path))


def test_newer_addresses_of_a_ticket_are_tried_first_and_at_once(path: str) -> None:
    contacts = Contacts(path, MESH)
    contacts.met({peer(1): ["10.0.0.1:7411"]}, 100.0)
    contacts.failed(contacts.known[peer(1)], "nobody there", 5.0, Random(1))
    contacts.add([(peer(1), ["10.0.0.1:9000", "10.0.0.1:7411"])])
    assert contacts.known[peer(1)].addresses == ("10.0.0.1:9000", "10.0.0.1:7411")
    assert contacts.due(5.0) == [contacts.known[peer(1)]]


def test_who_was_met_is_known_after_a_restart_with_the_addresses_it_had_last(path: str) -> None:
    contacts = Contacts(path, MESH)
    assert contacts.met({peer(1): ["10.0.0.1:7411"]}, 100.0)
    assert contacts.met({peer(1): ["10.0.0.2:7411", "[::1]:7411"], peer(2): ["10.0.0.3:1"]}, 200.0)
    write_contacts(path, contacts.data())
    again = Contacts(path, MESH)
    assert {known.peer: known.addresses for known in again.known.values()} == {
        peer(1): ("10.0.0.2:7411", "[::1]:7411"),
        peer(2): ("10.0.0.3:1",),
    }
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_only_a_change_is_worth_writing(path: str) -> None:
    contacts = Contacts(path, MESH)
    assert contacts.met({peer(1): ["10.0.0.1:7411"]}, 100.0)
    assert not contacts.met({peer(1): ["10.0.0.1:7411"]}, 101.0)
    assert not contacts.met({}, 102.0)
    assert not contacts.met({peer(1): []}, 103.0), "a session that is being resumed says no address"
    assert contacts.known[peer(1)].addresses == ("10.0.0.1:7411",)


def test_whom_a_ticket_names_is_dialed_and_kept_only_once_it_was_met(path: str) -> None:
    contacts = Contacts(path, MESH)
    contacts.add([(peer(1), ["10.0.0.1:7411"]), (peer(2), [])])
    assert [known.peer for known in contacts.due(0.0)] == [peer(1)]
    assert b"10.0.0.1" not in contacts.data()
    assert contacts.met({peer(1): ["10.0.0.1:7411"]}, 1.0)
    assert b"10.0.0.1" in contacts.data()


def test_a_peer_that_does_not_listen_is_no_contact(path: str) -> None:
    contacts = Contacts(path, MESH)
    assert not contacts.met({peer(1): []}, 1.0) and not contacts.known


def test_the_longest_unseen_are_forgotten_first(path: str) -> None:
    contacts = Contacts(path, MESH)
    for number in range(CONTACTS_MAX + 5):
        contacts.met({peer(number): [f"10.0.0.{number}:1"]}, float(number))
    assert len(contacts.known) == CONTACTS_MAX and peer(4) not in contacts.known and peer(5) in contacts.known


def test_a_silent_peer_is_dialed_less_and_less_often_until_it_is_met(path: str) -> None:
    contacts, now, pauses = Contacts(path, MESH), 0.0, list[float]()
    contacts.add([(peer(1), ["10.0.0.1:7411"])])
    for _ in range(20):
        [contact] = contacts.due(now)
        contacts.failed(contact, "nobody listens there", now, Random(1))
        assert not contacts.due(now) and contact.trouble == "nobody listens there"
        pauses.append(contact.due - now)
        now = contact.due
    assert RETRY_S[0] / 2 <= pauses[0] <= RETRY_S[0] and RETRY_S[1] / 2 <= pauses[-1] <= RETRY_S[1]
    contacts.met({peer(1): ["10.0.0.1:7411"]}, now)
    assert contacts.due(0.0) and not contact.trouble


def test_who_is_revoked_is_forgotten(path: str) -> None:
    contacts = Contacts(path, MESH)
    contacts.met({peer(1): ["10.0.0.1:7411"]}, 1.0)
    assert contacts.forget([peer(1), peer(2)]) and not contacts.known
    assert not contacts.forget([peer(1)])


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"\xff\xfe", b"null", b'{"mesh": 7}', b"[" * FILE_MAX_BYTES,
        b'{"mesh": "%s", "peers": [{"peer": "abc", "addresses": ["a:1"], "seen": 1}]}' % MESH.hex().encode(),
        b'{"mesh": "%s", "peers": [{"peer": "%s", "addresses": 7, "seen": 1}]}'
        % (MESH.hex().encode(), peer_text(peer(1)).encode()),
        b'{"mesh": "%s", "peers": 7}' % MESH.hex().encode(),
    ],
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)
    assert not Contacts(path, MESH).known


def test_contacts_of_another_mesh_are_not_dialed(path: str) -> None:
    contacts = Contacts(path, MESH)
    contacts.met({peer(1): ["10.0.0.1:7411"]}, 1.0)
    write_contacts(path, contacts.data())
    assert not Contacts(path, b"n" * 32).known
    remove_contacts(str(Path(path).parents[1]))
    assert not Contacts(path, MESH).known and not os.path.exists(path)


def test_a_disk_that_is_full_is_no_reason_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_contacts(str(tmp_path / "nowhere" / "peers"), b"x")
    assert "cannot be written" in caplog.text
