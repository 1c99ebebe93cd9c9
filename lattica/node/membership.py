"""What a command does with a membership while no node runs: say which files there are, delete them, look at them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

from lattica.node import paths

WHAT = {
    "membership": "the certificate",
    "issuer.key": "the key with which this node admits others",
    "trust": "what the mesh's admins have said",
    "peers": "addresses of peers",
}
"""Files of `<identity>/mesh`, and what each is."""


def files_of(identity: str) -> dict[str, str]:
    """Path -> what it is, of all that belongs to the mesh and is there. identity: the folder."""
    places = {os.path.join(identity, "mesh", name): what for name, what in WHAT.items()}
    return {path: what for path, what in places.items() if os.path.lexists(path)}


def forget(identity: str) -> None:
    """Delete them. The caller holds the data directory's lock."""
    from lattica.mesh import credentials
    from lattica.node.contacts import remove_contacts

    credentials.leave(identity)
    remove_contacts(identity)


@dataclass(frozen=True, slots=True)
class Offline:
    """What the disk says of a node that does not run. state: as of the steward's, as far as a disk knows it."""

    state: dict[str, Any]
    issuers: list[dict[str, Any]]


def look(data_dir: str, unix_s: float) -> Offline | None:
    """None if this machine is in no mesh. The caller holds the data directory's lock.

    Raises ConfigError if something is damaged.
    """
    from lattica.mesh import credentials
    from lattica.mesh.identity import PeerId, peer_text
    from lattica.mesh.roles import roles_text

    found = credentials.load(paths.identity_dir(data_dir), unix_s)
    if found is None:
        return None
    member = found.member
    recovery = credentials.recovery_path(found.folder, found.mesh)
    why = found.trust.revoked(member)
    state = {
        "peer_id": peer_text(found.identity.peer),
        "mesh": peer_text(PeerId(found.mesh)),
        "roles": roles_text(member.roles),
        "expires": member.expires,
        "via_invite": member.via_invite,
        "issuer": found.issuing is not None,
        "recovery_file": recovery if os.path.lexists(recovery) else "",
        "warnings": [f"this node is no member of its mesh any more: {why}"] if why else [],
    }
    issuers = [{"issuer_id": one.id.hex(), "peer_id": peer_text(one.peer)} for one in found.trust.issuers()]
    return Offline(state, issuers)


def open_files(data_dir: str) -> list[tuple[str, str]]:
    """(path, what is wrong) of each secret file or folder of this data directory that others could read or change."""
    identity = paths.identity_dir(data_dir)
    places = [identity, os.path.join(identity, "mesh")]
    for folder in list(places):
        try:
            places += [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name != "mesh"]
        except FileNotFoundError:
            continue
        except OSError as error:
            return [(folder, error.strerror or "it cannot be read")]
    wrong = []
    for path in places:
        try:
            found = os.lstat(path)
        except OSError:
            continue
        if found.st_uid != os.geteuid():
            wrong.append((path, f"it belongs to user {found.st_uid}"))
        elif found.st_mode & paths.OTHERS:
            wrong.append((path, f"it is open to others (mode {stat.S_IMODE(found.st_mode):03o})"))
        elif not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            wrong.append((path, "it is no file"))
    return wrong
