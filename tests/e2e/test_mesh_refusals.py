"""Who is not let in, over real sockets: each refusal has its reason on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lattica.errors import AdmissionError, ConfigError, LatticaError, PeerUnreachableError, PermissionDeniedError
from lattica.mesh import credentials, tls
from lattica.mesh.authority import make_root
from lattica.mesh.certificates import read_certificate
from lattica.mesh.credentials import Credentials
from lattica.mesh.identity import peer_text
from lattica.mesh.peer import Peer
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.services import method, service
from lattica.mesh.tickets import make_ticket, parse_ticket

pytestmark = pytest.mark.e2e
DAY_S = 86_400.0


@service("work")
class Work:
    @method(role=Role.SUBMIT)
    def submit(self, value: Any) -> Any:
        return value


class Mesh:
    """A founder that listens on loopback, and those who come."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self.peers: list[Peer] = []

    def folder(self) -> str:
        self._count += 1
        path = self._folder / str(self._count)
        path.mkdir(mode=0o700)
        return str(path)

    async def found(self, listen: str = "127.0.0.1:0", **options: Any) -> Peer:
        return await self.run(credentials.found(self.folder(), time.time(), None), listen=listen, **options)

    async def run(self, mine: Credentials, **options: Any) -> Peer:
        peer = Peer(mine, **options)
        peer.serve(Work())
        await peer.start()
        self.peers.append(peer)
        return peer

    async def join(self, ticket: str, **options: Any) -> Peer:
        return await self.run(credentials.join(self.folder(), parse_ticket(ticket), time.time()), **options)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    yield made
    for peer in made.peers:
        await peer.stop()


async def eventually(condition: Callable[[], object], within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


def host_port(peer: Peer) -> tuple[str, int]:
    host, _, port = peer.listening[0].rpartition(":")
    return host, int(port)


async def knock(peer: Peer, context: ssl.SSLContext) -> str:
    """Connect with this context and wait for what comes: the words for how it ended."""
    host, port = host_port(peer)
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=tls.MESH_NAME)
        try:
            data = await asyncio.wait_for(reader.read(100), 5)
            return "closed" if not data else f"it said {data[:20]!r}"
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
    except (OSError, ssl.SSLError) as error:
        return tls.words(error)


def context_of(chain: list[bytes], key: Any, root: bytes) -> ssl.SSLContext:
    """A client that shows whatever it likes, and believes this root."""

    class Shown:
        def private_key_pem(self) -> bytes:
            from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

            pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            return pem

    shown: Any = Shown()
    shown.root, shown.chain = root, chain
    return tls.Contexts(shown).client()


def fresh_key() -> tuple[Any, bytes]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    return key, key.public_key().public_bytes_raw()


async def test_no_certificate_is_refused_with_a_reason_on_both_sides(mesh: Mesh) -> None:
    founder = await mesh.found()
    said = await knock(founder, tls.renewal_client(founder.credentials.root))
    assert said == "it requires a certificate, and none was shown"
    assert await eventually(lambda: founder.refusals)
    assert founder.refusals[-1][2] == "it showed no certificate" and founder.refusals[-1][1].startswith("127.0.0.1:")


async def test_a_certificate_of_another_mesh_is_refused_with_a_reason_on_both_sides(mesh: Mesh) -> None:
    founder, other = await mesh.found(), await mesh.found()
    with pytest.raises(PeerUnreachableError, match="another mesh"):
        await other.connect(founder.id, founder.listening, timeout_s=10)
    theirs = other.credentials
    key = theirs.identity.private_key()
    said = await knock(founder, context_of(theirs.chain, key, founder.credentials.root))
    assert "another mesh" in said, said
    assert await eventually(lambda: any("another mesh" in why for _, _, why in founder.refusals))


async def test_a_self_signed_certificate_with_our_name_is_refused(mesh: Mesh) -> None:
    founder = await mesh.found()
    forged = make_root(time.time())
    key, public_key = fresh_key()
    chain = forged.certify_member(public_key, EVERYTHING, time.time())
    said = await knock(founder, context_of([*chain, forged.root], key, founder.credentials.root))
    assert said != "closed" and "it said" not in said
    assert await eventually(lambda: founder.refusals)
    assert "mesh" in founder.refusals[-1][2] or "itself" in founder.refusals[-1][2]


async def test_an_expired_invite_joins_nobody(mesh: Mesh) -> None:
    founder = await mesh.found()
    issuing = founder.credentials.issuing
    assert issuing is not None
    past = time.time() - 10 * DAY_S
    invite = issuing.invite(MEMBER, past, DAY_S)
    ticket = make_ticket(invite, [(founder.id, founder.listening)])
    with pytest.raises(AdmissionError, match="expired"):
        credentials.join(mesh.folder(), ticket, time.time())
    key, public_key = fresh_key()
    chain = invite.certify_member(public_key, MEMBER, past, invite=invite.id)
    said = await knock(founder, context_of(chain, key, founder.credentials.root))
    assert said == "it refuses our certificate: expired"
    assert await eventually(lambda: founder.refusals)
    assert founder.refusals[-1][2] == "a certificate of its chain has expired"


async def test_a_leaf_that_claims_a_role_its_invite_lacks_does_not_have_it(mesh: Mesh) -> None:
    """X.509 accepts such a leaf; what it may do is the intersection along its chain."""
    founder = await mesh.found()
    ticket = parse_ticket(founder.steward.ticket(Role.RELAY, 3600.0))
    mine = credentials.join(mesh.folder(), ticket, time.time())
    greedy = ticket.authority()
    greedy._facts = replace(greedy._facts, roles=EVERYTHING)  # the invite's key is ours: it signs what we like
    mine.chain = greedy.certify_member(mine.identity.public_key, EVERYTHING, time.time())
    assert read_certificate(mine.chain[0]).roles == EVERYTHING, "the leaf does claim it"
    liar = await mesh.run(mine)
    await liar.connect(founder.id, founder.listening, timeout_s=10)
    with pytest.raises(PermissionDeniedError, match="role submit"):
        await liar.call(founder.id, "work.submit", 1, timeout_s=10)
    assert await eventually(lambda: founder.peers()[0]["roles"] == "relay")


async def test_a_relay_only_peer_cannot_call_what_requires_submit(mesh: Mesh) -> None:
    founder = await mesh.found()
    relay = await mesh.join(founder.steward.ticket(Role.RELAY, 3600.0))
    await relay.connect(founder.id, founder.listening, timeout_s=10)
    with pytest.raises(PermissionDeniedError, match="role submit") as caught:
        await relay.call(founder.id, "work.submit", 1, timeout_s=10)
    assert caught.value.role == "submit"


async def test_a_revoked_peer_is_out_and_is_told_why(mesh: Mesh) -> None:
    founder = await mesh.found()
    ticket = founder.steward.ticket(MEMBER, 3600.0)
    guest = await mesh.join(ticket)
    await guest.connect(founder.id, founder.listening, timeout_s=10)
    assert await guest.call(founder.id, "work.submit", 1, timeout_s=10) == 1
    await founder.steward.revoke(guest.id, "it was sold")
    assert await eventually(lambda: not founder.peers() and not guest.peers(), within_s=2)
    with pytest.raises(PeerUnreachableError, match=r"revoked on .*: it was sold"):
        await guest.connect(founder.id, founder.listening, timeout_s=10)


async def test_a_revoked_peer_cannot_come_back_with_a_new_key_from_its_old_ticket(mesh: Mesh) -> None:
    founder = await mesh.found()
    ticket = founder.steward.ticket(MEMBER, 3600.0)
    guest, sibling = await mesh.join(ticket), await mesh.join(ticket)
    for each in (guest, sibling):
        await each.connect(founder.id, founder.listening, timeout_s=10)
    assert await eventually(
        lambda: not guest.credentials.member.via_invite and not sibling.credentials.member.via_invite
    )
    await founder.steward.revoke(guest.id)
    again = await mesh.join(ticket)
    with pytest.raises(PeerUnreachableError, match="ticket it came by was closed"):
        await again.connect(founder.id, founder.listening, timeout_s=10)
    assert await eventually(lambda: founder.peers() and founder.peers()[0]["peer_id"] == peer_text(sibling.id))


async def test_a_ticket_of_an_unknown_version_says_so(mesh: Mesh) -> None:
    founder = await mesh.found()
    text = founder.steward.ticket(MEMBER, 3600.0)
    with pytest.raises(ConfigError, match="newer lattica"):
        parse_ticket("lat2" + text[4:])
    with pytest.raises(LatticaError):
        parse_ticket(text[:-5])


async def test_noise_and_silence_do_not_hold_a_listener(mesh: Mesh) -> None:
    founder = await mesh.found()
    where = host_port(founder)
    noisy = [socket.create_connection(where) for _ in range(20)]
    for sock in noisy:
        sock.sendall(os.urandom(300))
    silent = [socket.create_connection(where) for _ in range(20)]
    guest = await mesh.join(founder.steward.ticket(MEMBER, 3600.0))
    await guest.connect(founder.id, founder.listening, timeout_s=10)
    assert await eventually(lambda: len(founder.refusals) >= 20)
    for sock in noisy + silent:
        sock.close()


async def test_a_member_that_knew_only_the_founder_finds_the_second_issuer_before_the_founder_dies(mesh: Mesh) -> None:
    founder = await mesh.found()
    ticket = founder.steward.ticket(MEMBER, 3600.0)
    second = await mesh.join(ticket, listen="127.0.0.1:0")
    await second.connect(founder.id, founder.listening, timeout_s=10)
    await founder.steward.add_issuer(second.id)
    member = await mesh.join(ticket)
    await member.connect(founder.id, founder.listening, timeout_s=10)
    assert await eventually(lambda: second.id in set(member.sessions.peers()))
    await founder.stop()
    answer = await member.call(second.id, "mesh.certify", timeout_s=10)
    assert answer["chain"], answer
