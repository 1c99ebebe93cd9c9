"""What `lattica doctor` looks at, and what it makes of it: facts of a node, or of its disk, become findings.

A finding is "bad" if something does not work or a secret is in danger, "warn" if it soon may, else "ok".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lattica.cli import protection
from lattica.cli.addresses import RELAY, are_local, dial_text, shown, trouble_text
from lattica.cli.client import NodeConnection
from lattica.cli.sizes import duration_text, moment_text
from lattica.errors import ConfigError, LatticaError
from lattica.mesh.mapping.words import words_of
from lattica.mesh.nat_shell import words as nat_words
from lattica.node import membership, paths

OK, WARN, BAD = "ok", "warn", "bad"
SHORT = 8  # characters of an id for people
DAY_S = 86400.0
RENEWAL_LATE_S = 7 * DAY_S
"""A membership of 30 days is renewed when ten are left; with seven left no issuer has answered for three days."""
RENEWABLE_S = 180 * DAY_S  # after its end; as of `mesh.admission`
CLOCK_WARN_S = 30.0
"""Above: logs of machines are hard to compare, and a coming change of the clock may be large."""
CLOCK_BAD_S = 900.0  # the mesh corrects no more than this; beyond, certificates seem not yet valid, or expired
REFUSALS_SHOWN = 5
REFUSALS_AGE_S = 3600.0  # older ones say little of now
NO_MESH = "`lattica start` founds a mesh, `lattica join TICKET` joins one"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: str
    what: str
    do_next: str = ""

    def lines(self) -> list[str]:
        """For people."""
        return [f"{self.level:<4}  {self.what}"] + ([f"      do next: {self.do_next}"] if self.do_next else [])

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(data_dir: str, unix_s: float) -> list[Finding]:
    """All there is to say of the node of this data directory, whether it runs or not."""
    try:
        node = paths.running_node(data_dir)
    except ConfigError as error:
        return [_bad(error)]
    if node is None:
        return [*_stopped(data_dir), *of_files(data_dir), *_of_disk(data_dir, unix_s)]
    found = [Finding(OK, f"node {node.node[:SHORT]} runs (pid {node.pid}, lattica {node.version}) on {data_dir}")]
    found += of_files(data_dir)
    try:
        with NodeConnection(node) as connection:
            found += of_protection(connection.state("protection") or {})
            found += of_node(connection.mesh("doctor"), unix_s)
    except LatticaError as error:
        found.append(_bad(error))
    return found


def _bad(error: LatticaError) -> Finding:
    return Finding(BAD, error.message, error.do_next)


def _stopped(data_dir: str) -> Iterator[Finding]:
    yield Finding(WARN, f"no node runs on {data_dir}", "`lattica start`")


def _of_disk(data_dir: str, unix_s: float) -> Iterator[Finding]:
    """What the files say while no node runs."""
    if not os.path.isdir(paths.identity_dir(data_dir)):
        yield Finding(WARN, "this machine has no key and is in no mesh", NO_MESH)
        return
    try:
        lock = paths.lock_data_dir(data_dir)
    except ConfigError as error:
        yield _bad(error)
        return
    try:
        kept = membership.look(data_dir, unix_s)
    except LatticaError as error:
        yield _bad(error)
        return
    finally:
        os.close(lock)
    if kept is None:
        yield Finding(WARN, "this machine is in no mesh", NO_MESH)
        return
    yield from of_membership(kept.state, unix_s)
    yield from of_issuers(kept.issuers)


# -- one thing after another -----------------------------------------------------------------------------------------


def of_files(data_dir: str) -> Iterator[Finding]:
    """Owners and modes of the identity's files."""
    identity = paths.identity_dir(data_dir)
    if not os.path.isdir(identity):
        return
    wrong = membership.open_files(data_dir)
    for path, why in wrong:
        yield Finding(
            BAD, f"{path}: {why}", f"chmod go= {path}; if somebody may have read a key, `lattica revoke` this peer"
        )
    if not wrong:
        yield Finding(OK, f"the key and its folder {identity} are this user's alone")


def of_protection(said: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether tasks are kept from the key."""
    missing = protection.warning(said)
    if not missing:
        yield Finding(OK, "tasks cannot read this node's key")
    else:
        do_next = "use a kernel or container that allows what is missing, or run no code of others here (roles)"
        yield Finding(WARN if said.get("mounts") else BAD, missing, do_next)


def of_node(facts: Mapping[str, Any], unix_s: float) -> Iterator[Finding]:
    """What a running node says. Tolerates what one of another release leaves out."""
    state = facts.get("whoami", {})
    yield from of_membership(state, unix_s)
    yield from of_issuers(facts.get("issuers", []))
    yield from of_clock(state, facts.get("peers", []))
    yield from of_port(state, facts.get("reached", []))
    yield from of_mapping(facts.get("mapping", {}), state)
    yield from of_nat(facts.get("nat", {}), facts.get("peers", []))
    yield from of_peers(facts.get("peers", []), facts.get("troubles", []), state)
    yield from of_members(facts.get("members", {}))
    yield from of_table(facts.get("table", {}))
    yield from of_refusals(facts.get("refusals", []), unix_s)


def of_membership(state: Mapping[str, Any], unix_s: float) -> Iterator[Finding]:
    """Certificates, roles, and the root key's file."""
    peer, mesh = str(state.get("peer_id", "?"))[:SHORT], str(state.get("mesh", "?"))[:SHORT]
    what = f"peer {peer} of mesh {mesh}, with the roles {state.get('roles', '?')}"
    expires = state.get("expires", unix_s + RENEWABLE_S)
    left = expires - unix_s
    lost = [text for text in state.get("warnings", ()) if "no member" in text]
    if lost:
        yield from (Finding(BAD, text, "ask an admin of the mesh") for text in lost)
    elif left <= -RENEWABLE_S or (left <= 0 and state.get("via_invite")):
        yield Finding(BAD, f"{what}: its membership ended {duration_text(-left)} ago", "join with a new ticket")
    elif left <= 0:
        yield Finding(
            BAD,
            f"{what}: its membership ended {duration_text(-left)} ago",
            "an issuer renews it as soon as one answers; `lattica start`, and see that one is reachable",
        )
    elif state.get("via_invite"):
        yield Finding(
            WARN,
            f"{what}: no issuer has certified it yet; its ticket lets it stay for {duration_text(left)}",
            "see that an issuer is reachable (`lattica issuer` on a node of the mesh lists them)",
        )
    elif left < RENEWAL_LATE_S:
        yield Finding(
            WARN,
            f"{what}: its membership ends in {duration_text(left)}, and no issuer has renewed it",
            "see that an issuer is reachable (`lattica issuer` lists them)",
        )
    else:
        yield Finding(OK, f"{what}, until {moment_text(expires)}")
    if recovery := state.get("recovery_file"):
        yield Finding(
            WARN,
            f"the recovery file {recovery} lies on this machine: whoever reads it rules the mesh",
            "move it to a safe place off this machine",
        )


def of_issuers(issuers: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether losing one machine ends admission."""
    if len(issuers) < 2:
        yield Finding(
            WARN,
            "the mesh has fewer than two issuers: if that one is lost, nobody can join or renew",
            "make another on the node that founded the mesh: `lattica issuer add PEER`",
        )
    else:
        yield Finding(OK, f"the mesh has {len(issuers)} issuers")


def of_clock(state: Mapping[str, Any], peers: Sequence[object]) -> Iterator[Finding]:
    """This machine's clock beside those of others."""
    off_s = -float(state.get("clock_measured_s", 0.0))
    if not peers and not off_s:
        yield Finding(OK, "the clock could not be compared: there is no session with another node")
    elif abs(off_s) > CLOCK_BAD_S:
        yield Finding(
            BAD, f"the clock is {off_s:+.0f} s off, which is more than the mesh corrects", "set it (ntp, chrony)"
        )
    elif abs(off_s) > CLOCK_WARN_S:
        yield Finding(WARN, f"the clock is {off_s:+.0f} s off; the mesh corrects that", "set it (ntp, chrony)")
    else:
        yield Finding(OK, f"the clock is within {max(abs(off_s), 0.1):.1f} s of the others'")


def of_port(state: Mapping[str, Any], reached: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether others reach where this node listens."""
    addresses = state.get("addresses", [])
    if not addresses:
        yield Finding(OK, "this node does not listen: it only dials")
        return
    yield from (Finding(WARN, note, "give --listen HOST:PORT to choose") for note in state.get("notes", ()))
    listens = f"this node listens at {', '.join(shown(addresses)[:3])}"
    good = [
        (address, str(answer.get("peer_id", "?"))[:SHORT])
        for answer in reached
        for address, why in answer.get("addresses", {}).items()
        if not why
    ]
    if good:
        yield Finding(OK, f"{listens}; peer {good[0][1]} reaches it at {good[0][0]}")
    elif reached:
        why = next((f"{at}: {why}" for answer in reached for at, why in answer.get("addresses", {}).items()), "")
        peer = str(reached[0].get("peer_id", "?"))[:SHORT]
        if any(address.startswith(RELAY) for address in addresses):
            yield Finding(OK, f"{listens}; who does not reach that port, like peer {peer}, comes by way of the relay")
            return
        yield Finding(
            WARN,
            f"{listens}, and peer {peer} does not reach it ({why or 'it knows no address'})",
            "open the port in the firewall, or have a relay in the mesh; this node can still dial others",
        )
    else:
        yield Finding(OK, f"{listens}; there is no peer to ask whether it reaches that")


def of_mapping(status: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[Finding]:
    """What the router maps here. A router that maps nothing is no fault: most nodes do without, and one with a public
    IPv4 address needs nothing."""
    if status:
        what, do_next = words_of(status)
        outer = [text for text in state.get("addresses", ()) if not text.startswith(("[", RELAY))]
        yield Finding(OK, what, do_next if are_local(outer) or not outer else "")


def of_nat(status: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What this machine is behind, and who is relayed for it."""
    for said in nat_words.words_of(status, peers):
        yield Finding(OK if said.good else WARN, said.what, said.do_next)


def of_peers(
    peers: Sequence[object], troubles: Sequence[Mapping[str, Any]], state: Mapping[str, Any]
) -> Iterator[Finding]:
    """Sessions, and those that are wanted in vain."""
    from_there = "" if peers else dial_text(state)
    if peers:
        yield Finding(OK, f"sessions with {len(peers)} other node{'s' if len(peers) > 1 else ''}")
    for trouble in troubles[:REFUSALS_SHOWN]:
        why = str(trouble.get("why", "?"))
        if "refuses this node" in why:
            yield Finding(BAD, why, "ask an admin of the mesh (`lattica issuer` on another node)")
        else:
            do_next = "see that it runs, and that this machine reaches its addresses"
            yield Finding(
                WARN, trouble_text(trouble), f"{do_next}; or run there: {from_there}" if from_there else do_next
            )


def of_members(members: Mapping[str, Any]) -> Iterator[Finding]:
    """Who of the mesh lives, and who watches this node."""
    counts = members.get("counts", {})
    if sum(counts.values()) < 2:
        return
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    watchers = [one.get("name") or str(one.get("peer_id", "?"))[:SHORT] for one in members.get("watched_by", ())]
    watched = f"; this node is watched by {', '.join(watchers)}" if watchers else ""
    what = f"the mesh has {sum(counts.values())} nodes: {shown}{watched}"
    if counts.get("dead") or counts.get("suspect"):
        yield Finding(WARN, what, "`lattica peers` says which; see that they run, and reach the network")
    else:
        yield Finding(OK, what)


def of_table(table: Mapping[str, Any]) -> Iterator[Finding]:
    """Our table beside those of neighbours, and writers whose rows do not count."""
    rows, neighbours = table.get("rows", 0), table.get("neighbours", [])
    if not neighbours:
        return
    same = [one for one in neighbours if one.get("same")]
    where = f"the same at {len(same)} of {len(neighbours)} neighbours"
    what = f"the table has {rows} rows (fingerprint {str(table.get('root', '?'))[:SHORT]}), {where}"
    if len(same) == len(neighbours):
        yield Finding(OK, what)
    else:
        others = [one for one in neighbours if not one.get("same")][:REFUSALS_SHOWN]
        they = ", ".join(f"{_who(one)} differs ({rows} rows here, {one.get('rows', '?')} there)" for one in others)
        yield Finding(WARN, f"{what}; {they}", "look again in a minute; if it stays, read node.log on both")
    liars = [one for one in table.get("distrusted", ()) if "revoked" not in str(one.get("why", ""))]
    for one in liars[:REFUSALS_SHOWN]:
        do_next = "find out who has its key (a copy of its directory?), and `lattica revoke` it"
        yield Finding(WARN, f"what {_who(one)} wrote does not count: {one.get('why', '?')}", do_next)
    for one in table.get("refused", [])[:REFUSALS_SHOWN]:
        yield Finding(
            WARN,
            f"{_who(one)} passed on rows that are not taken: {one.get('why', '?')}",
            "look at `lattica doctor` there; it may run another release",
        )


def _who(one: Mapping[str, Any]) -> str:
    return str(one.get("name") or str(one.get("peer_id", "?"))[:SHORT])


def of_refusals(refusals: Sequence[Mapping[str, Any]], unix_s: float) -> Iterator[Finding]:
    """Handshakes that came to nothing of late, the latest first."""
    fresh = [one for one in refusals if unix_s - one.get("at", unix_s) < REFUSALS_AGE_S]
    for one in fresh[: -REFUSALS_SHOWN - 1 : -1]:
        ago = duration_text(unix_s - one.get("at", unix_s))
        yield Finding(
            WARN,
            f"a connection from {one.get('from', '?')} was refused {ago} ago: {one.get('why', '?')}",
            "nothing, if that was no node of yours; else look at its own `lattica doctor`",
        )
