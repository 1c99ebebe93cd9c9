"""TLS 1.3 as the mesh needs it, and whom a connection has proved to be. The one module that touches `ssl`'s internals.

Both sides require a certificate under the mesh's root; OpenSSL verifies chains and times. There are no session tickets
and no early data: a resumed session would be accepted after its chain has expired. Python 3.11 and 3.12 show the
verified chain only through a private method, 3.13 by a public one (`verified_chain`).

The one exception to mutual authentication is the server name `renew`: there the client shows no certificate, because
it has expired, and one bounded request is read (`admission`).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from lattica.errors import AdmissionError, LatticaError
from lattica.mesh.certificates import VERIFICATION_WORDS, Member, read_chain
from lattica.mesh.effects import NOBODY_LISTENS

if TYPE_CHECKING:
    from lattica.mesh.wire import Buffer

MESH_NAME, RENEW_NAME = "mesh.lattica", "renew"
"""Server names. That of the mesh says nothing about which mesh it is: it is visible to whoever carries the packets."""
RELAY_ALPN = "lattica-relay/1"
"""The application protocol of a connection that carries a relay's datagrams; one without any is a session's."""
SEEN_ALPN = "lattica-seen/1"
"""Of one that is answered with the address from which it seems to come, and closed."""
CLIENT_HELLO_MAX_BYTES = 8 << 10  # post-quantum key shares make it 1.8 KB
RENEWAL_MAX_BYTES = 16 << 10


class Keys(Protocol):
    """As much of `credentials.Credentials` as a handshake needs."""

    @property
    def root(self) -> bytes: ...
    @property
    def chain(self) -> list[bytes]: ...
    def private_key_pem(self) -> bytes: ...


class Contexts:
    """The contexts of one node, made again when its certificates change."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._made_of: list[bytes] = []
        self._server = self._client = self._renewal = self._relay = self._seen = None  # type: ssl.SSLContext | None

    def server(self) -> ssl.SSLContext:
        """For accepting: a certificate of this mesh is required."""
        self._make()
        assert self._server is not None
        return self._server

    def client(self) -> ssl.SSLContext:
        """For dialing."""
        self._make()
        assert self._client is not None
        return self._client

    def relay_client(self) -> ssl.SSLContext:
        """For dialing a relay, to send datagrams by way of it."""
        self._make()
        assert self._relay is not None
        return self._relay

    def seen_client(self) -> ssl.SSLContext:
        """For asking a peer how it sees us."""
        self._make()
        assert self._seen is not None
        return self._seen

    def renewal_server(self) -> ssl.SSLContext:
        """For the server name `renew`: we show who we are, and ask for nothing."""
        self._make()
        assert self._renewal is not None
        return self._renewal

    def member_of(self, connection: Any) -> Member:
        """Who is at the other end. Raises AdmissionError if it showed no certificate, or one that is not a member's."""
        chain = verified_chain(connection)
        if not chain:
            raise AdmissionError("it showed no certificate", do_next="join with a ticket: `lattica join TICKET`")
        return read_chain(chain, self._keys.root)

    def _make(self) -> None:
        if self._made_of == self._keys.chain:
            return
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, self._keys)
        self._server.verify_mode = ssl.CERT_REQUIRED
        self._server.set_alpn_protocols([RELAY_ALPN, SEEN_ALPN])  # who offers none has a session in mind
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT, self._keys)
        self._relay = _context(ssl.PROTOCOL_TLS_CLIENT, self._keys)
        self._relay.set_alpn_protocols([RELAY_ALPN])
        self._seen = _context(ssl.PROTOCOL_TLS_CLIENT, self._keys)
        self._seen.set_alpn_protocols([SEEN_ALPN])
        self._renewal = _context(ssl.PROTOCOL_TLS_SERVER, self._keys)
        self._renewal.verify_mode = ssl.CERT_NONE
        self._made_of = list(self._keys.chain)


def renewal_client(root: bytes) -> ssl.SSLContext:
    """For one whose own certificate has expired: the server must be of the mesh, and we show nothing."""
    context = _bare(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root)
    return context


def verified_chain(connection: Any) -> list[bytes]:
    """The chain of the other end as OpenSSL verified it, DER, leaf first, without the root; [] if it showed none."""
    if hasattr(connection, "get_verified_chain"):  # 3.13
        chain: list[bytes] = connection.get_verified_chain()
    else:
        found = connection._sslobj.get_verified_chain()
        chain = [certificate.public_bytes(_DER) for certificate in found or ()]
    return chain[:-1]


_DER = 2  # _ssl.ENCODING_DER


def record_layer(connection: ssl.SSLObject) -> tuple[Callable[[int, memoryview], int], Callable[[Buffer], int]]:
    """Its `read(size, into)` and `write(data)`, as OpenSSL has them: each message of the mesh goes through both, and
    the methods around them cost as much as they do."""
    inside: Any = getattr(connection, "_sslobj", connection)
    return inside.read, inside.write


def server_name(client_hello: bytes) -> str | None:
    """The name in the first bytes of a TLS connection ("": none); None if they are not all there yet.

    OpenSSL parses it, in an object that is thrown away. Raises ssl.SSLError for what is no ClientHello.
    """
    incoming, names = ssl.MemoryBIO(), list[str]()
    incoming.write(client_hello)

    def seen(_: object, name: str | None, __: object) -> int:
        names.append(name or "")
        return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE  # enough: do not go on

    context = _bare(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = seen
    sniffer = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    try:
        sniffer.do_handshake()
    except ssl.SSLWantReadError:
        if len(client_hello) >= CLIENT_HELLO_MAX_BYTES:
            raise
        return names[0] if names else None
    except ssl.SSLError:
        if not names:
            raise
    return names[0] if names else ""


def words(error: BaseException) -> str:
    """What a failed handshake or a broken connection means, for people."""
    if isinstance(error, LatticaError):
        return str(error).partition("\n")[0]
    if isinstance(error, ssl.SSLCertVerificationError):
        return VERIFICATION_WORDS.get(error.verify_code, f"its certificate is not accepted: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        for reason, text in _ALERTS.items():
            if reason in (error.reason or ""):
                return text
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "it did not finish the handshake in time"
    if isinstance(error, ConnectionRefusedError):
        return NOBODY_LISTENS
    if isinstance(error, ConnectionError):
        return "it broke the connection"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return str(error) or type(error).__name__


def is_refusal(error: BaseException) -> bool:
    """Whether trying again with the same certificates is no use."""
    if isinstance(error, ssl.SSLCertVerificationError | AdmissionError):
        return True
    return isinstance(error, ssl.SSLError) and any(reason in (error.reason or "") for reason in _ALERTS)


_ALERTS = {
    "CERTIFICATE_REQUIRED": "it requires a certificate, and none was shown",
    "ALERT_UNKNOWN_CA": "it is of another mesh, and does not know ours",
    "CERTIFICATE_EXPIRED": "it refuses our certificate: expired",
    "ALERT_BAD_CERTIFICATE": "it refuses our certificate",
    "ALERT_CERTIFICATE_UNKNOWN": "it refuses our certificate",
    "ALERT_DECRYPT_ERROR": "it refuses our certificate: a signature is wrong",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
}
"""Parts of OpenSSL's reasons. An alert comes after the dialer's side of the handshake is complete (TLS 1.3)."""


def _bare(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.check_hostname = False
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def _context(protocol: int, keys: Keys) -> ssl.SSLContext:
    context = _bare(protocol)
    context.load_verify_locations(cadata=keys.root)
    pem = b"".join(map(_pem, keys.chain)) + keys.private_key_pem()
    _with_file(pem, context.load_cert_chain)
    return context


def _pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _with_file(data: bytes, use: Callable[[str], object]) -> None:
    """`ssl` reads keys from files only: give it one that is on no disk and has no name."""
    fd = os.memfd_create("lattica-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        use(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
