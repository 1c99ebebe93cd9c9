"""QUIC without sockets: one connection, datagrams in and out. The only module that touches aioquic's private parts.

    configurations = Configurations(keys)
    engine = dial(configurations, now)                   engine = accept(configurations, original, retried)
    path.send(engine.datagrams(now))                     for event in engine.receive(datagrams, now): ...

What aioquic does not do by itself, and a test pins with its version (`PINNED`):

- As a server it asks for no certificate, and never verifies a client's chain: the request is switched on, and at the
  end of the handshake both sides verify the other's chain by `certificates`, before a byte is passed on.
- The dialer's handshake is over before the other side has judged it. `Up` comes to a dialer with HANDSHAKE_DONE
  (RFC 9001 §4.1.2), which is sent only by one who has accepted it.
- It moves to whatever address a packet came from, and lets a server name another one. It is told one address that
  never changes and is none, so it never does: paths are chosen outside, and a switch is told by `path_changed`.
- Its windows double without end. Here they slide: WINDOW_BYTES beyond what was read, streams of one direction none.
- Its congestion controls take every loss for a full queue, and its pacer leaks: see `quic_congestion`.
- Its tokens of connection ids are random, so that nobody knows them after a restart; and it does not look for others'.
- Acknowledgements ride on data wherever there is some.
- There are no session tickets, so there is neither resumption nor early data: a resumed session would be accepted
  after its chain has expired.

It imports aioquic (3.5 MiB, 0.2 s), so it is imported where the first packet needs it.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from time import time
from typing import TYPE_CHECKING, Any

import msgspec
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import create_congestion_control, register_congestion_control
from aioquic.quic.connection import (
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicConnectionState,
    QuicNetworkPath,
)
from aioquic.quic.packet import QuicFrameType, QuicProtocolVersion
from aioquic.tls import AlertDescription, CipherSuite, Epoch, Group, SignatureAlgorithm
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from lattica.errors import AdmissionError, LatticaError
from lattica.mesh import tls
from lattica.mesh.certificates import Member, verify_chain
from lattica.mesh.transport.quic_congestion import Bbr, Pacer
from lattica.mesh.transport.quic_packets import CID_BYTES, Resets

if TYPE_CHECKING:
    from aioquic.quic.packet_builder import QuicPacketBuilder
    from aioquic.quic.recovery import QuicPacketSpace
    from aioquic.quic.stream import QuicStream

log = logging.getLogger(__name__)
PINNED = "1.7"
"""The release of aioquic that the private parts used here were read in."""
ALPN = "lattica/1"
IDLE_S = 30.0
"""Of silence, after which a connection is over. Sessions ping after 15 s of silence, and give up 5 s later."""
ACK_DELAY_S = 0.002
"""Packets of so long share an acknowledgement that nothing else carries: a packet of Python's costs 100 us."""
STREAMS_MAX = 16  # of one direction, open at once: two planes, each with a successor, and some that are ending
WINDOW_BYTES = 2 << 20
"""Of one stream, sent and not read: 20 MB/s over 100 ms, more than Python's packets carry. A stream holds as much
memory at the most, when its packets come out of order."""
UNBOUNDED = 1 << 60  # of a connection: its streams have bounds
HANDSHAKE_DATAGRAM_BYTES = 1200  # RFC 9000 §14: every path carries them
ETHERNET_MAX_BYTES = 1500  # what is longer stays within a machine, where nothing is too long
LONG_LOST_MAX = 12
"""Packets of more than HANDSHAKE_DATAGRAM_BYTES in a row that are lost while shorter ones arrive: somewhere on the way
they are dropped, and no word of it comes back (RFC 8899 §4.3). By chance, at 20 % loss: once in 10^8 packets."""
UNHEARD_MAX = 3
"""Timeouts in a row that say the same, where only long packets are sent. If the path is dead, it costs nothing."""
SWITCH_WINDOW = 32
"""Datagrams that a new path may have in flight before it is measured: what waited while the old one was found dead, and
three round trips fewer until bulk flows again. RFC 9002 §7.2 begins with ten; Chromium's QUIC with 32."""
GRAIN_S = 1e-6  # aioquic's timers may be due at a time that its sums only come to a rounding error later
_CRYPTO_ERROR = 0x100  # RFC 9000 §20.1: plus the number of a TLS alert
_NOWHERE = ("-", 0)  # the address that aioquic is told: none, so that nothing it is told can lead elsewhere
_REFUSALS = {
    _CRYPTO_ERROR + alert
    for alert in (
        AlertDescription.bad_certificate,
        AlertDescription.certificate_expired,
        AlertDescription.certificate_unknown,
        AlertDescription.unknown_ca,
        AlertDescription.access_denied,
        AlertDescription.certificate_required,
    )
}


class Up(msgspec.Struct, frozen=True):
    """Both sides have accepted each other; streams may be opened."""

    member: Member


class Data(msgspec.Struct, frozen=True):
    """Bytes of a stream, in order. ended: the other side writes no more."""

    stream: int
    data: bytes
    ended: bool


class Ids(msgspec.Struct, frozen=True):
    """Packets with this connection id are, or are no longer, this connection's."""

    id: bytes
    valid: bool


class Gone(msgspec.Struct, frozen=True):
    """The connection is over. final: one side does not accept the other's certificates."""

    reason: str
    final: bool


Event = Up | Data | Ids | Gone


class Configurations:
    """What handshakes show and demand, made again when our certificates change."""

    def __init__(self, keys: tls.Keys, wall: Callable[[], float] = time) -> None:
        """wall: unix time, by which chains are judged."""
        self.keys, self.wall = keys, wall
        self.resets = Resets(keys.private_key_pem)
        self._made_of: list[bytes] = []
        self._made: tuple[QuicConfiguration, QuicConfiguration] | None = None

    def get(self, *, client: bool) -> QuicConfiguration:
        """Of today's certificates."""
        if self._made is None or self._made_of != self.keys.chain:
            leaf, *above = (x509.load_der_x509_certificate(der) for der in self.keys.chain)
            key = load_pem_private_key(self.keys.private_key_pem(), None)
            self._made = _configuration(True, leaf, above, key), _configuration(False, leaf, above, key)
            self._made_of = list(self.keys.chain)
        return self._made[0 if client else 1]


def _configuration(is_client: bool, leaf: Any, above: list[Any], key: Any) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        server_name=tls.MESH_NAME,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        cipher_suites=[CipherSuite.AES_128_GCM_SHA256, CipherSuite.CHACHA20_POLY1305_SHA256],
        verify_mode=ssl.CERT_NONE,  # by us, of both sides and by the same rules
        certificate=leaf,
        certificate_chain=above,
        private_key=key,
        connection_id_length=CID_BYTES,
        idle_timeout=IDLE_S,
        congestion_control_algorithm=_CONGESTION,
        max_data=UNBOUNDED,
        max_stream_data=WINDOW_BYTES,
        max_datagram_size=HANDSHAKE_DATAGRAM_BYTES,
    )


_CONGESTION = "lattica-bbr"
register_congestion_control(_CONGESTION, Bbr)


class _Connection(QuicConnection):
    """aioquic's, with what the module's docstring says of it."""

    def __init__(self, resets: Resets, **options: Any) -> None:
        super().__init__(**options)
        self._resets = resets
        if not self._is_client:  # a client's first has none (RFC 9000 §18.2)
            self._host_cids[0].stateless_reset_token = resets.token(self._host_cids[0].cid)
        self._local_max_streams_bidi = _limit(self._local_max_streams_bidi, STREAMS_MAX)
        self._local_max_streams_uni = _limit(self._local_max_streams_uni, 0)
        self._ack_delay = ACK_DELAY_S
        self._loss._pacer = _pacer_of(self._loss._cc)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = not self._is_client
        # All keys of a mesh are Ed25519; one group saves a dialer three key pairs, 3 ms.
        self.tls._supported_groups = [Group.X25519]
        self.tls._signature_algorithms = [SignatureAlgorithm.ED25519]

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        for made in self._host_cids:
            if not made.was_sent:
                made.stateless_reset_token = self._resets.token(made.cid)

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        wanted = stream.receiver.starting_offset() + WINDOW_BYTES
        if wanted - stream.max_stream_data_local >= WINDOW_BYTES // 2:
            stream.max_stream_data_local = wanted
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        frame = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        assert stream.stream_id is not None, "handshakes have no windows"
        frame.push_uint_var(stream.stream_id)
        frame.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local


def _pacer_of(control: object) -> Pacer:
    assert isinstance(control, Bbr), "the configuration names it"
    return Pacer(control)


def _limit(like: Limit, value: int) -> Limit:
    return Limit(like.frame_type, like.name, value)


def dial(configurations: Configurations, now: float) -> Engine:
    """A connection of ours to another peer, whichever answers."""
    configuration = configurations.get(client=True)
    connection = _Connection(configurations.resets, configuration=configuration)
    connection.connect(_NOWHERE, now)
    return Engine(connection, configurations)


def accept(configurations: Configurations, original: bytes, retried: bytes | None) -> Engine:
    """A connection that somebody begins whose address is known to be theirs. original, retried: the connection ids
    that their first Initial was for, and that our Retry, if there was one, has told them to use."""
    connection = _Connection(
        configurations.resets,
        configuration=configurations.get(client=False),
        original_destination_connection_id=original,
        retry_source_connection_id=retried,
    )
    connection._network_paths = [QuicNetworkPath(_NOWHERE, is_validated=True)]
    return Engine(connection, configurations)


class Engine:
    """One connection; see the module. `now` is monotonic seconds."""

    __slots__ = ("_configurations", "_connection", "_member", "_over", "_up", "made_with")

    def __init__(self, connection: _Connection, configurations: Configurations) -> None:
        self._connection, self._configurations = connection, configurations
        self.made_with = list(configurations.keys.chain)
        self._member: Member | None = None  # verified, and not necessarily up
        self._up = self._over = False

    def __repr__(self) -> str:
        return f"<Engine, {'up' if self._up else 'over' if self._over else 'in its handshake'}>"

    @property
    def id(self) -> bytes:
        """The connection id that the other side uses first."""
        return self._connection.host_cid

    @property
    def over(self) -> bool:
        """Nothing is said or heard any more."""
        return self._over

    @property
    def reset_token(self) -> bytes:
        """What the other side, started again, will say to our packets; b"" if it has not told: as a dialer it does
        not, and dials again."""
        return self._connection._peer_cid.stateless_reset_token

    def abandon(self) -> None:
        """The other side knows nothing of it any more."""
        self._over = True

    # -- packets

    def receive(self, datagrams: Sequence[bytes], now: float) -> list[Event]:
        """What comes of datagrams."""
        connection = self._connection
        try:
            for datagram in datagrams:
                connection.receive_datagram(datagram, _NOWHERE, now)
            return self._events(now)
        except Exception as error:  # what aioquic does not foresee ends this connection, and no other
            log.exception("a QUIC connection broke")
            self._over = True
            return [Gone(f"it sent what could not be read: {error!r}", False)]

    def datagrams(self, now: float) -> list[bytes]:
        """What to send now."""
        connection = self._connection
        if self._over or not connection._spaces:  # over, or nothing was heard yet
            return []
        ours = connection._spaces[Epoch.ONE_RTT]
        rides = ours.ack_at is not None and ours.ack_at > now and self._has_unsent()
        if rides and connection._loss._pacer.next_send_time(now=now) is None:
            ours.ack_at = now  # data goes out anyway: an acknowledgement by itself costs a packet more
        datagrams = [datagram for datagram, _ in connection.datagrams_to_send(now + GRAIN_S)]
        control: Any = connection._loss._cc
        if datagrams:
            pacer: Any = connection._loss._pacer
            pacer.give_back(len(datagrams) * control.datagram_bytes - sum(map(len, datagrams)))
        if control.bytes_in_flight < control.congestion_window and not self._has_unsent():
            control.nothing_to_send()
        return datagrams

    def in_a_hurry(self, now: float) -> bool:
        """Whether `datagrams` may have something now, and not only at the deadline. Asking costs a tenth of it."""
        connection = self._connection
        if not self._up or connection._handshake_done_pending or connection._close_pending:
            return True
        ack_at = connection._spaces[Epoch.ONE_RTT].ack_at
        return (ack_at is not None and ack_at <= now) or self._has_unsent()

    def _has_unsent(self) -> bool:
        return any(not stream.sender.buffer_is_empty for stream in self._connection._streams.values())

    def deadline(self) -> float | None:
        """When to call `tick`; it changes with every other call."""
        return None if self._over else self._connection.get_timer()

    def tick(self, now: float) -> list[Event]:
        """What comes of time."""
        if self._over:
            return []
        if self._connection._close_at is not None:
            self._connection.handle_timer(now + GRAIN_S)
        return self._events(now)

    def path_changed(self, datagram_bytes: int) -> None:
        """Its packets take another path from now on, which carries datagrams of that size: what was measured of the
        old one says nothing of it, and what is on its way there takes no room here."""
        loss, configuration = self._connection._loss, self._connection.configuration
        size = self._connection._max_datagram_size = datagram_bytes
        loss._cc = create_congestion_control(configuration.congestion_control_algorithm, max_datagram_size=size)
        if self._up:
            control: Any = loss._cc
            control.begin_with(SWITCH_WINDOW)
        loss._pacer = _pacer_of(loss._cc)
        loss._rtt_initialized = False
        loss._rtt_min, loss._rtt_smoothed, loss._rtt_variance, loss._pto_count = float("inf"), 0.0, 0.0, 0

    def path_died(self, now: float) -> None:
        """What is on its way does not arrive: send it again, and do not wait until that shows."""
        loss = self._connection._loss
        for space in loss.spaces:
            loss._on_packets_lost(
                congestion_event=False, now=now, packets=list(space.sent_packets.values()), space=space
            )
            space.loss_time = None

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip of the current path."""
        loss = self._connection._loss
        return loss._rtt_smoothed if loss._rtt_initialized else None

    @property
    def largest(self) -> int:
        """Number of the latest authentic packet: it grows when one came that is new."""
        return self._connection._spaces[Epoch.ONE_RTT].largest_received_packet if self._connection._spaces else -1

    # -- streams

    def open(self) -> int:
        """A new stream of both directions."""
        return self._connection.get_next_available_stream_id()

    def write(self, stream: int, data: bytes, *, ends: bool = False) -> None:
        """Write to a stream. ends: nothing follows."""
        if self._over:
            return
        try:
            self._connection.send_stream_data(stream, data, end_stream=ends)
        except (ValueError, RuntimeError):
            pass  # the other side has ended it, and does not read

    def unacked(self, stream: int) -> int:
        """Bytes of this stream that lie here: unsent, or sent and not acknowledged."""
        found = self._connection._streams.get(stream)
        return 0 if found is None else found.sender._buffer_stop - found.sender._buffer_start

    def unsent(self, stream: int) -> int:
        """Bytes of this stream that were never sent."""
        found = self._connection._streams.get(stream)
        return 0 if found is None else found.sender._buffer_stop - found.sender.highest_offset

    def sent(self, stream: int) -> bool:
        """The other side has all of this stream, its end included, or wants no more."""
        found = self._connection._streams.get(stream)
        return found is None or found.sender.is_finished

    def close(self, reason: str, code: int = 0) -> None:
        """End the connection, streams and all; `datagrams` says so to the other side."""
        self._connection.close(error_code=code, frame_type=QuicFrameType.PADDING, reason_phrase=reason[:256])

    @property
    def closing(self) -> bool:
        """One of the sides has ended it."""
        connection = self._connection
        return self._over or connection._close_pending or connection._state.value >= QuicConnectionState.CLOSING.value

    # -- inside

    def _events(self, now: float) -> list[Event]:
        connection = self._connection
        control: Any = connection._loss._cc
        if HANDSHAKE_DATAGRAM_BYTES < connection._max_datagram_size <= ETHERNET_MAX_BYTES and (
            control.long_lost > LONG_LOST_MAX or connection._loss._pto_count >= UNHEARD_MAX
        ):
            self.path_changed(HANDSHAKE_DATAGRAM_BYTES)
        found: list[Event] = []
        while (event := connection.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                if self._member is not None:
                    found.append(Data(event.stream_id, event.data, event.end_stream))
            elif isinstance(event, events.StreamReset):
                if self._member is not None:
                    found.append(Data(event.stream_id, b"", True))
            elif isinstance(event, events.HandshakeCompleted):
                refused = self._verify(event)
                if refused is not None:
                    found.append(refused)
            elif isinstance(event, events.ConnectionIdIssued):
                found.append(Ids(event.connection_id, True))
            elif isinstance(event, events.ConnectionIdRetired):
                found.append(Ids(event.connection_id, False))
            elif isinstance(event, events.ConnectionTerminated):
                found.append(self._terminated(event))
        if connection._state is QuicConnectionState.DRAINING and not self._over:  # aioquic says so some time later
            assert connection._close_event is not None, "somebody has ended it"
            found.append(self._terminated(connection._close_event))
        if not self._up and self._member is not None and connection._handshake_confirmed and not self.closing:
            self._up = True
            found.insert(0, Up(self._member))
        return found

    def _verify(self, event: events.HandshakeCompleted) -> Gone | None:
        """Judge the other side's chain; None if it is a member's. Nothing it sent was passed on yet."""
        context = self._connection.tls
        try:
            if event.session_resumed or event.early_data_accepted:
                raise AdmissionError("it resumed a session, and there are none")
            if context._peer_certificate is None:
                raise AdmissionError("it showed no certificate", do_next="join with a ticket: `lattica join TICKET`")
            whole = [context._peer_certificate, *context._peer_certificate_chain]
            chain = [certificate.public_bytes(Encoding.DER) for certificate in whole]
            self._member = verify_chain(chain, self._configurations.keys.root, self._configurations.wall())
        except LatticaError as error:
            reason = str(error).partition("\n")[0]
            alert = "certificate_required" if context._peer_certificate is None else "certificate_unknown"
            self.close(f"your certificate is not accepted: {reason}", _CRYPTO_ERROR + AlertDescription[alert])
            return Gone(reason, True)
        return None

    def _terminated(self, event: events.ConnectionTerminated) -> Gone:
        self._over = True
        reason = event.reason_phrase
        if reason == "Idle timeout":
            reason = "no answer" if self._member is None else f"it was silent for {IDLE_S:g} s"
        # Before its chain was verified anybody on the way may have said it.
        final = self._member is not None and event.error_code in _REFUSALS
        return Gone(reason or "the other side closed it", final)
