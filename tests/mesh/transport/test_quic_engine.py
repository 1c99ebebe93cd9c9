"""QUIC connections without sockets: who is let in, and the private parts of aioquic that this rests on."""

from __future__ import annotations

import inspect
import ssl
from heapq import heappush
from importlib.metadata import version
from typing import Any

import pytest
from aioquic import tls as aioquic_tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.recovery import QuicPacketRecovery

from lattica.mesh import certificates
from lattica.mesh.certificates import DAY_S
from lattica.mesh.roles import MEMBER, NOTHING
from lattica.mesh.transport import quic_engine
from lattica.mesh.transport.quic_engine import SWITCH_WINDOW, Configurations, Engine, Gone, Up
from tests.mesh.transport.quic_pairs import NOW, Mesh, Side, Wire, configurations, connected, the_mesh, wire


def settle(pair: Wire) -> Wire:
    """Until both ends know whether they are together."""
    pair.run(lambda w: (w.client.up or w.client.gone is not None) and (w.server.up or w.server.gone is not None), 5.0)
    return pair


def refused(pair: Wire) -> tuple[Gone, Gone]:
    """Both ends' words; nobody was let in."""
    settle(pair)
    client, server = pair.client.gone, pair.server.gone
    assert client is not None and server is not None, (pair.client.heard, pair.server.heard)
    assert not pair.client.up and not pair.server.up
    return client, server


# -- who is let in -----------------------------------------------------------------------------------------------------


def test_two_members_prove_who_they_are_to_each_other() -> None:
    mesh = the_mesh()
    one, two = mesh.member(MEMBER), mesh.invited()
    pair = settle(wire(configurations(one), configurations(two)))
    (there,), (here,) = pair.client.of(Up), pair.server.of(Up)
    assert isinstance(there, Up) and isinstance(here, Up)
    assert (there.member.peer, here.member.peer) == (two.peer, one.peer)
    assert here.member == certificates.verify_chain(one.chain, one.root, NOW), "as over TCP"
    assert there.member.via_invite


class Bare(Configurations):
    """Shows no certificate as a dialer."""

    def get(self, *, client: bool) -> Any:
        made = super().get(client=client)
        if client:
            made.certificate, made.private_key = None, None
        return made


def test_a_dialer_without_a_certificate_is_refused_and_told_why() -> None:
    mesh = the_mesh()
    client, server = refused(wire(Bare(mesh.member(), lambda: NOW), configurations(mesh.member())))
    assert server == Gone("it showed no certificate", True)
    assert client.final and "no certificate" in client.reason


class BareListener(Configurations):
    """Shows no certificate as a listener: an empty list, which TLS 1.3 forbids, and nobody checks but who reads it."""

    def get(self, *, client: bool) -> Any:
        made = super().get(client=client)
        if not client:
            made.certificate_chain = []
            made.certificate = Nothing(made.certificate)
        return made


class Nothing:
    """A certificate of no bytes."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def public_bytes(self, encoding: Any) -> bytes:
        return b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_listener_without_a_certificate_is_refused() -> None:
    mesh = the_mesh()
    pair = wire(configurations(mesh.member()), BareListener(mesh.member(), lambda: NOW))
    pair.run(lambda wire: wire.client.gone is not None, 40.0)
    assert pair.client.gone is not None and not pair.client.up and not pair.server.up


def test_a_dialer_of_another_mesh_is_refused_and_told_why() -> None:
    ours, theirs = the_mesh(), Mesh()
    stranger = theirs.member()
    stranger.root = ours.top.root  # it knows our root, and has no certificate under it
    client, server = refused(wire(configurations(stranger), configurations(ours.member())))
    assert server.final and "not one chain of this mesh" in server.reason
    assert client.final and "your certificate is not accepted" in client.reason


def test_a_listener_of_another_mesh_is_refused_and_told_why() -> None:
    ours, theirs = the_mesh(), Mesh()
    client, server = refused(wire(configurations(ours.member()), configurations(theirs.member())))
    assert client.final and "mesh" in client.reason
    assert server.final is False or "not accepted" in server.reason


def test_a_certificate_that_has_expired_is_refused_in_both_directions() -> None:
    mesh = the_mesh()
    old = mesh.member(at=NOW - 31 * DAY_S)
    client, server = refused(wire(configurations(old), configurations(mesh.member())))
    assert server == Gone("a certificate of its chain has expired", True) and client.final
    client, server = refused(wire(configurations(mesh.member()), configurations(old)))
    assert client == Gone("a certificate of its chain has expired", True)


def test_whoever_has_a_members_certificate_and_not_its_key_is_refused() -> None:
    mesh = the_mesh()
    thief, victim = mesh.member(), mesh.member()
    thief.chain = victim.chain
    assert not settle(wire(configurations(thief), configurations(mesh.member()))).server.up
    assert not settle(wire(configurations(mesh.member()), configurations(thief))).client.up


def test_roles_are_what_the_certificate_says() -> None:
    mesh = the_mesh()
    pair = settle(wire(configurations(mesh.member(NOTHING)), configurations(mesh.member())))
    (up,) = pair.server.of(Up)
    assert isinstance(up, Up) and up.member.roles == NOTHING


def test_nothing_that_a_stranger_says_is_passed_on() -> None:
    """It writes before the other side has judged it: bytes arrive with its certificate, in one flight."""
    mesh = the_mesh()
    pair = wire(Bare(mesh.member(), lambda: NOW), configurations(mesh.member()))
    client = pair.client.engine

    def early(w: Wire) -> bool:
        if client._member is not None and not client.unacked(0):
            client.write(0, b"let me in" * 100)
        return w.server.gone is not None

    assert pair.run(early, 5.0)
    assert pair.server.data(0) == b""


def test_a_dialer_is_up_only_when_the_other_side_has_accepted_it() -> None:
    """The dialer's own handshake is over one trip before its certificate is there."""
    mesh = the_mesh()
    pair = wire(configurations(mesh.member()), configurations(mesh.member()), delay_s=1.0)
    pair.run(lambda w: w.client.engine._member is not None, 30.0)
    verified = pair.now
    assert not pair.client.up
    pair.run(lambda w: w.client.up, 30.0)
    assert pair.now >= verified + 2.0 - 0.1


def test_certificates_that_were_renewed_are_shown_from_the_next_handshake_on() -> None:
    mesh = the_mesh()
    keys = mesh.member()
    ours = configurations(keys)
    settle(wire(ours, configurations(mesh.member())))
    keys.chain = mesh.issuer.certify_member(certificates.read_certificate(keys.chain[0]).public_key, MEMBER, NOW + 5)
    pair = settle(wire(ours, configurations(mesh.member(), NOW + 5)))
    (up,) = pair.server.of(Up)
    assert isinstance(up, Up) and up.member.certified == NOW + 5


# -- streams, windows, paths ------------------------------------------------------------------------------------------


def test_bytes_arrive_in_order_over_a_wire_that_loses_and_reorders() -> None:
    pair = connected(loss=0.05, jitter_s=0.01)
    client = pair.client.engine
    sent = bytes(range(256)) * 2000
    stream = client.open()
    client.write(stream, sent, ends=True)
    assert client.unacked(stream) == client.unsent(stream) == len(sent)
    assert pair.run(lambda w: len(w.server.data(stream)) == len(sent))
    assert pair.server.data(stream) == sent
    assert pair.run(lambda w: client.sent(stream)) and client.unacked(stream) == 0


def test_a_windows_end_slides_and_does_not_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_engine, "WINDOW_BYTES", 64 << 10)
    pair = connected()
    stream = pair.client.engine.open()
    for _ in range(20):
        pair.client.engine.write(stream, bytes(50_000))
        pair.run(lambda w: not pair.client.engine.unacked(stream))
    there = pair.server.engine._connection._streams[stream]
    assert there.receiver.starting_offset() == 1_000_000
    assert there.max_stream_data_local <= 1_000_000 + (64 << 10)


def test_a_member_that_opens_more_streams_than_it_may_is_cut_off() -> None:
    pair = connected()
    connection = pair.client.engine._connection
    connection._remote_max_streams_bidi = connection._remote_max_streams_uni = 1000  # it does not care
    for stream in range(0, 4 * (quic_engine.STREAMS_MAX + 1), 4):
        pair.client.engine.write(stream, b"x")
    assert pair.run(lambda w: w.server.engine.closing, 5.0)
    pair = connected()
    pair.client.engine._connection._remote_max_streams_uni = 1000
    pair.client.engine.write(2, b"x")
    assert pair.run(lambda w: w.server.engine.closing, 5.0), "streams of one direction are none"


def test_a_new_path_begins_with_what_is_known_of_it_nothing() -> None:
    pair = connected()
    engine = pair.client.engine
    engine.write(engine.open(), bytes(500_000))
    pair.run(lambda w: w.now > 0.3, 5.0)
    loss = engine._connection._loss
    assert loss.congestion_window > 20_000 and engine.rtt_s is not None
    assert loss.bytes_in_flight
    engine.path_changed(1350)
    engine.write(0, bytes(500_000), ends=True)
    assert (loss.congestion_window, loss.bytes_in_flight, engine.rtt_s) == (SWITCH_WINDOW * 1350, 0, None)
    pair.sent.clear()
    assert pair.run(lambda w: engine.sent(0)) and max(size for _, side, size in pair.sent) == 1350


def test_what_a_dead_path_swallowed_is_sent_by_the_new_one_at_once() -> None:
    """Not when timeouts have shown that it was lost, and without having room taken by it."""
    pair = connected()
    engine = pair.client.engine
    stream = engine.open()
    engine.write(stream, bytes(10_000))
    pair.loss = 1.0
    pair.run(lambda w: False, 1.0)  # the timer for probes has doubled meanwhile
    pair.loss, began = 0.0, pair.now
    engine.path_died(pair.now)
    engine.path_changed(1350)
    pair.flush(pair.client)
    assert pair.run(lambda w: len(w.server.data(stream)) == 10_000, 5.0)
    assert pair.now - began <= pair.delay_s * 1.5


def test_a_window_that_is_not_used_does_not_grow() -> None:
    """A word now and then for a long time, and then much at once: the path has never shown that it carries that."""
    pair = connected()
    engine = pair.client.engine
    stream = engine.open()
    for _ in range(300):
        engine.write(stream, bytes(500))
        pair.run(lambda w: not engine.unacked(stream), 5.0)
    assert engine._connection._loss.congestion_window <= 15_000
    engine.write(stream, bytes(400_000))
    pair.run(lambda w: not engine.unacked(stream), 30.0)
    assert engine._connection._loss.congestion_window > 40_000, "when it is used it does"


def test_a_path_that_drops_long_packets_in_silence_is_used_with_shorter_ones() -> None:
    """A tunnel on the way carries 1,300 bytes, and the word that packets are too long is lost: a black hole."""

    class Tunnel(Wire):
        def flush(self, side: Side) -> None:
            other = self.server if side is self.client else self.client
            for datagram in side.engine.datagrams(self.now):
                if len(datagram) <= 1300:
                    self._count += 1
                    heappush(self._under_way, (self.now + self.delay_s, self._count, other, datagram))

    pair = connected()
    tunnel = Tunnel(pair.client.engine, pair.server.engine)
    tunnel.now = pair.now
    tunnel.client.engine.path_changed(1350)
    stream = tunnel.client.engine.open()
    tunnel.client.engine.write(stream, bytes(200_000))
    assert tunnel.run(lambda wire: len(wire.server.data(stream)) == 200_000, 5.0)
    assert tunnel.now - pair.now < 2.0


def test_a_connection_that_is_closed_tells_the_other_side_and_says_nothing_more() -> None:
    pair = connected()
    pair.client.engine.close("that was all")
    assert pair.run(lambda w: w.server.gone is not None, 5.0)
    assert pair.server.gone == Gone("that was all", False) and pair.server.engine.over
    assert pair.server.engine.datagrams(pair.now) == []
    assert pair.run(lambda w: w.client.engine.over, 5.0)


def test_a_silent_connection_ends_by_itself() -> None:
    pair = connected()
    pair.loss = 1.0
    assert pair.run(lambda w: w.client.gone is not None, 60.0)
    assert pair.client.gone == Gone("it was silent for 30 s", False)


def test_what_anybody_on_the_way_can_forge_is_never_final() -> None:
    """Keys of Initial packets are known to all: a refusal in one proves nothing."""
    mesh = the_mesh()
    pair = wire(configurations(mesh.member()), configurations(mesh.member()))
    forger = pair.server.engine
    forger.receive(pair.client.engine.datagrams(0.0), 0.0)
    forger.close("you are refused", 0x100 + 42)  # before it has sent anything else
    pair.run(lambda w: w.client.gone is not None, 5.0)
    assert pair.client.gone is not None and not pair.client.gone.final


# -- the private parts ------------------------------------------------------------------------------------------------


def test_aioquic_is_of_the_release_whose_private_parts_were_read() -> None:
    assert version("aioquic").startswith(quic_engine.PINNED + "."), "read quic_engine again before raising this"


def test_every_private_part_of_aioquic_that_is_used_is_there() -> None:
    pair = connected()
    connection = pair.client.engine._connection
    for name in (
        "_close_at", "_close_pending", "_handshake_confirmed", "_local_max_streams_bidi", "_local_max_streams_uni",
        "_loss", "_max_datagram_size", "_network_paths", "_on_max_stream_data_delivery", "_spaces", "_state",
        "_streams", "_host_cids", "_peer_cid", "_replenish_connection_ids",
    ):  # fmt: skip
        assert hasattr(connection, name), name
    for name in ("_request_client_certificate", "_supported_groups", "_signature_algorithms", "_peer_certificate",
                 "_peer_certificate_chain"):  # fmt: skip
        assert hasattr(connection.tls, name), name
    for name in ("_cc", "_pacer", "_pto_count", "_rtt_initialized", "_rtt_min", "_rtt_smoothed", "_rtt_variance"):
        assert hasattr(connection._loss, name), name
    sender = connection._get_or_create_stream_for_send(0).sender
    assert (sender._buffer_stop, sender._buffer_start, sender.highest_offset) == (0, 0, 0)


def test_the_methods_that_are_overridden_are_called_as_they_were() -> None:
    assert list(inspect.signature(QuicConnection._initialize).parameters) == ["self", "peer_cid"]
    limits = inspect.signature(QuicConnection._write_stream_limits).parameters
    assert list(limits) == ["self", "builder", "space", "stream"]
    assert "_pacer" in inspect.getsource(QuicPacketRecovery.__init__)


def test_tokens_of_connection_ids_are_those_that_a_restarted_node_would_say() -> None:
    pair = connected()
    ours = pair.server.engine._configurations.resets
    server, client = pair.server.engine._connection, pair.client.engine._connection
    assert pair.client.engine.reset_token == ours.token(server._host_cids[0].cid) != b""
    assert len(client._peer_cid_available) >= 1, "what else the server has told"
    for cid in client._peer_cid_available:
        assert cid.stateless_reset_token == ours.token(cid.cid)
    assert pair.server.engine.reset_token == b"", "a dialer's first id has none"


def test_aioquic_by_itself_asks_no_dialer_for_a_certificate() -> None:
    """If this fails, a hook is no longer needed."""
    context = aioquic_tls.Context(is_client=False)
    assert context._request_client_certificate is False and context._verify_mode == ssl.CERT_NONE


def test_there_are_no_session_tickets() -> None:
    pair = connected()
    for side in (pair.client, pair.server):
        engine: Engine = side.engine
        assert engine._connection.tls.new_session_ticket_cb is None
        assert engine._connection.tls.get_session_ticket_cb is None
