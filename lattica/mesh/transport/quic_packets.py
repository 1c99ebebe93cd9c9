"""What is readable of QUIC packets without keys, and answers to strangers: pure, and without aioquic.

A stranger's first packet (Initial) is answered by a Retry that holds the stranger's address under a MAC. Only one who
received it there returns it, so a forged source costs a hash, makes no state, and brings its victim less than a tenth
of what the forger sent (RFC 9000 §8.1.2, §17.2.5). Everything else that is not understood is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest

import msgspec
from blake3 import blake3

VERSION = 1
CID_BYTES = 8  # of our connection ids, so that short headers can be read
CID_MAX_BYTES = 20  # RFC 9000 §17.2
INITIAL_LEAST_BYTES = 1200  # RFC 9000 §14.1: shorter ones are dropped
TOKEN_S = 10.0  # of a Retry: the longest round trip, several times
MAC_BYTES = 16
TOKEN_BYTES = 16  # RFC 9000 §10.3
RESET_BYTES = 25  # of a reset: as the shortest packets are, so that hardly one is too short to be answered
RESETS_MAX = 50  # said in a second: a peer needs one
LONG, FIXED = 0x80, 0x40  # bits of the first byte
_RESETS_OF = "lattica 2026-11-27 tokens of QUIC connection ids"
_TYPE, _INITIAL, _RETRY = 0x30, 0x00, 0x30
_RETRY_KEY = bytes.fromhex("be0c690b9f66575a1d766b54e368c84e")  # RFC 9001 §5.8, both known to everybody
_RETRY_NONCE = bytes.fromhex("461599d35d632bf2239825bb")


class Initial(msgspec.Struct, frozen=True):
    """What the first packet of a connection says in clear."""

    destination: bytes
    source: bytes
    token: bytes


def destination_of(datagram: bytes) -> bytes | None:
    """The connection id that it is for; None if there is none to be read."""
    if len(datagram) < 1 + CID_BYTES:
        return None
    if not datagram[0] & LONG:
        return datagram[1 : 1 + CID_BYTES]
    if len(datagram) < 7 or int.from_bytes(datagram[1:5]) != VERSION:
        return None
    end = 6 + datagram[5]
    return datagram[6:end] if datagram[5] <= CID_MAX_BYTES and end < len(datagram) else None


def initial_of(datagram: bytes) -> Initial | None:
    """The Initial that begins this datagram; None if it is anything else, or shorter than it must be."""
    if len(datagram) < INITIAL_LEAST_BYTES or datagram[0] & (LONG | FIXED | _TYPE) != LONG | FIXED | _INITIAL:
        return None
    destination = destination_of(datagram)
    if destination is None or len(destination) < CID_BYTES:  # RFC 9000 §7.2: the first one has 8 at least
        return None
    at = 6 + len(destination)
    size = datagram[at]
    source = datagram[at + 1 : at + 1 + size]
    at += 1 + size
    width = 1 << (datagram[at] >> 6)  # RFC 9000 §16
    token_size = int.from_bytes(datagram[at : at + width]) & ((1 << (8 * width - 2)) - 1)
    at += width
    if size > CID_MAX_BYTES or at + token_size > len(datagram):
        return None
    return Initial(destination, source, datagram[at : at + token_size])


class Resets:
    """Word to those who still talk to a connection that this node does not know, as it was started again: a token that
    only who holds this node's key could know, and that the other side was told when the connection began (RFC 9000
    §10.3). Without it they would wait for half a minute."""

    def __init__(self, secret: Callable[[], bytes]) -> None:
        """secret: of the node, the same after a restart; asked for when it is needed first."""
        self._secret = secret
        self._key = b""
        self._second, self._said = 0, 0

    def token(self, id: bytes) -> bytes:
        """Of this connection id of ours."""
        if not self._key:
            self._key = blake3(self._secret(), derive_key_context=_RESETS_OF).digest()
        return blake3(id, key=self._key).digest(TOKEN_BYTES)

    def answer(self, datagram: bytes, noise: bytes, now: float) -> bytes | None:
        """To a packet with a short header and a connection id that nobody has; None if nothing is to be said: it is no
        longer than the answer, which two who have both forgotten would throw back and forth, or there were enough.
        noise: RESET_BYTES random bytes."""
        if len(datagram) <= RESET_BYTES:
            return None
        if int(now) != self._second:
            self._second, self._said = int(now), 0
        self._said += 1
        if self._said > RESETS_MAX:
            return None
        head = bytes([FIXED | (noise[0] & 0x3F)]) + noise[1 : RESET_BYTES - TOKEN_BYTES]
        return head + self.token(datagram[1 : 1 + CID_BYTES])


class Retries:
    """Answers to strangers, and the recognition of who returns them. Keeps nothing but its key."""

    def __init__(self, key: bytes) -> None:
        """key: 32 secret bytes, of this process."""
        self._key = key
        self._seal: object | None = None

    def answer(self, initial: Initial, address: bytes, id: bytes, now: float) -> bytes:
        """The Retry for an Initial from this address. id: CID_BYTES random bytes, which it shall use."""
        issued = int(now * 1e3).to_bytes(8)
        token = issued + initial.destination
        token += self._mac(token, id, address)
        packet = b"".join(
            (
                bytes([LONG | FIXED | _RETRY]),
                VERSION.to_bytes(4),
                bytes([len(initial.source)]),
                initial.source,
                bytes([len(id)]),
                id,
                token,
            )
        )
        return packet + self._tag(initial.destination, packet)

    def original(self, initial: Initial, address: bytes, now: float) -> bytes | None:
        """The connection id that this peer's first Initial was for, if it returns a token of ours from the address
        that it was sent to; else None."""
        token, mac = initial.token[:-MAC_BYTES], initial.token[-MAC_BYTES:]
        if not 8 + CID_BYTES <= len(token) <= 8 + CID_MAX_BYTES:
            return None
        if not 0 <= now - int.from_bytes(token[:8]) / 1e3 <= TOKEN_S:
            return None
        return token[8:] if compare_digest(mac, self._mac(token, initial.destination, address)) else None

    def _mac(self, token: bytes, id: bytes, address: bytes) -> bytes:
        return blake3(bytes([len(token), len(id)]) + token + id + address, key=self._key).digest(MAC_BYTES)

    def _tag(self, original: bytes, packet: bytes) -> bytes:
        """RFC 9001 §5.8: shows that whoever answers has seen the Initial."""
        if self._seal is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._seal = AESGCM(_RETRY_KEY)
        sealed: bytes = self._seal.encrypt(_RETRY_NONCE, b"", bytes([len(original)]) + original + packet)  # type: ignore[attr-defined]
        return sealed
