"""What a node knows of its membership, and where that lies on disk.

    <data directory>/identity/          `folder`; workers cannot see it
        node.key, boot                  (`identity`) they stay when the node leaves its mesh
        mesh/membership                 msgpack [version, root, [own certificate, ...], [[peer, [address, ...]], ...]]
        mesh/issuer.key                 only on issuers: PEM, the private key and the chain that entitles it
        mesh/trust                      msgpack [statement, ...]
    <data directory>/lattica-recovery-<mesh>.key     PEM, the root's key and certificate, for the user to move away

`membership` is written last and removed first: what lies beside it without it is nobody's. The secret of an invite is
never written: the joiner certifies itself for as long as the invite lasts, and an issuer does the rest. The caller
holds the data directory's lock.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from lattica.errors import AdmissionError, ConfigError, LatticaError
from lattica.files import remove
from lattica.mesh.authority import Authority, make_root, new_secret, public_key_of
from lattica.mesh.certificates import CHECKS, Member, read_chain, verify_chain
from lattica.mesh.identity import Identity, PeerId, load_or_create, next_boot, short_peer
from lattica.mesh.keyfiles import damaged, key_file, read_kept, read_key_file, unwritable, write_kept
from lattica.mesh.papers import DAMAGED
from lattica.mesh.roles import EVERYTHING, Role, roles_text
from lattica.mesh.tickets import Ticket, require_unexpired
from lattica.mesh.trust import STATEMENT_MAX_BYTES, STATEMENTS_MAX, IssuerNamed, Trust, when, write_statement

VERSION = 1
MEMBERSHIP_MAX_BYTES = 64 << 10  # ours have 3 KB
TRUST_MAX_BYTES = STATEMENTS_MAX * (STATEMENT_MAX_BYTES + 5) + 5
Peers = tuple[tuple[PeerId, tuple[str, ...]], ...]


class _Membership(msgspec.Struct, array_like=True, frozen=True):
    version: int
    root: bytes
    chain: list[bytes]
    peers: list[tuple[bytes, list[str]]] = []


@dataclass(slots=True)
class Credentials:
    """Everything a node knows of its membership. No secret is in its repr.

    chain: our own, leaf first, without the root. issuing: the key by which this node certifies others, if it is an
    issuer. peers: whom the ticket named. recovery_file: where the root key was written, if that was just now.
    """

    folder: str
    identity: Identity
    boot: int
    root: bytes
    chain: list[bytes]
    member: Member
    trust: Trust
    issuing: Authority | None = None
    peers: Peers = ()
    recovery_file: str = ""
    _draft: bytes = field(default=b"", repr=False)

    def __repr__(self) -> str:
        issuer = ", issuer" if self.issuing else ""
        return (
            f"<Credentials {short_peer(self.identity.peer)} in mesh {short_peer(PeerId(self.mesh))}: "
            f"{roles_text(self.member.roles)}{issuer}, until {when(self.member.expires)}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials never leave their node")

    @property
    def mesh(self) -> bytes:
        """The id of the mesh: BLAKE3-256 of its root's public key."""
        return self.member.mesh

    def private_key_pem(self) -> bytes:
        """The peer's private key as TLS wants it."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self.identity.private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def save(self) -> None:
        """Keep root, chain and peers, on disk before this returns. Raises ConfigError if that cannot be."""
        peers = [(bytes(peer), list(addresses)) for peer, addresses in self.peers]
        membership = _Membership(VERSION, self.root, self.chain, peers)
        write_kept(_path(self.folder, "membership"), msgspec.msgpack.encode(membership))

    def save_trust(self) -> None:
        """Keep what the admins said."""
        write_kept(_path(self.folder, "trust"), msgspec.msgpack.encode(self.trust.statements()))

    def renew(self, chain: Sequence[bytes], now: float) -> None:
        """Show this chain from now on, on disk before this returns. Raises AdmissionError if it is not ours."""
        member = verify_chain(chain, self.root, now)
        if member.peer != self.identity.peer:
            raise AdmissionError("the new certificate is another peer's")
        self.chain, self.member = list(chain), member
        self.save()

    def draft_issuer(self) -> bytes:
        """The public key by which this node would certify others, for somebody who may make it an issuer."""
        self._draft = self._draft or new_secret()
        return public_key_of(self._draft)

    def adopt_issuer(self, chain: Sequence[bytes], now: float) -> Authority:
        """Certify others from now on: `chain` entitles the key of `draft_issuer`. On disk before this returns.

        Raises AdmissionError if it does not.
        """
        CHECKS.issuing_key(chain, self.root, now)
        if not self._draft:
            raise AdmissionError("no key of this node waits to be an issuer's", do_next="begin with `lattica issuer`")
        issuing = Authority(self._draft, self.root, chain)
        write_kept(_path(self.folder, "issuer.key"), key_file("", issuing))
        self.issuing, self._draft = issuing, b""
        return issuing

    def name_issuer(self, label: str, now: float) -> bytes:
        """The statement by which the mesh learns that this node certifies members."""
        assert self.issuing is not None, "a node that is no issuer names itself one"
        says = IssuerNamed(list(self.issuing.chain), self.identity.peer, label)
        return write_statement(says, now, self.identity, self.chain, self.mesh)


# -- how a node comes by them ----------------------------------------------------------------------------------------


def found(folder: str, unix_s: float, recovery_file: str | None = None) -> Credentials:
    """A new mesh with this node as its first member, admin and issuer; its root key goes into the recovery file.

    recovery_file: by default in `folder`, which workers cannot see.

    Raises ConfigError if it exists, or if this node has a mesh already.
    """
    if _read_membership(folder) is not None:
        raise ConfigError("this node is in a mesh already", do_next="`lattica leave` it first")
    identity = load_or_create(folder)
    boot = next_boot(folder, unix_s)
    root = make_root(unix_s)
    _make_folder(folder)
    recovery = _write_recovery(folder, root, recovery_file)
    secret = new_secret()
    issuing = Authority(secret, root.root, root.certify_issuer(public_key_of(secret), unix_s))
    chain = issuing.certify_member(identity.public_key, EVERYTHING, unix_s)
    member = verify_chain(chain, root.root, unix_s)
    made = Credentials(
        folder, identity, boot, root.root, chain, member, Trust(root.root, CHECKS), issuing, recovery_file=recovery
    )
    made.trust.merge([made.name_issuer("founder", unix_s)], unix_s)
    write_kept(_path(folder, "issuer.key"), key_file("", issuing))
    made.save_trust()
    made.save()
    return made


def join(folder: str, ticket: Ticket, unix_s: float, roles: Role = EVERYTHING) -> Credentials:
    """Become a member by this ticket, for as long as its invite lasts; an issuer makes that a membership. roles: of
    those that it gives, no others.

    A node that is a member of that mesh already keeps its membership, unless that has ended or lacks a role that the
    ticket gives: then the ticket's roles are the new ones. Raises AdmissionError if the ticket has expired, does not
    fit together, or is one of another mesh than the one this node is in.
    """
    mesh = ticket.mesh
    before = load(folder, unix_s)
    if before is not None:
        if before.mesh != mesh:
            raise AdmissionError(
                f"the ticket is for mesh {short_peer(PeerId(mesh))}, and this node is in mesh "
                f"{short_peer(PeerId(before.mesh))}",
                do_next="`lattica leave` that one first, or start without the ticket to return to it",
            )
        if before.member.expires > unix_s and ticket.roles & roles in before.member.roles:
            return before
    require_unexpired(ticket, unix_s)
    identity = before.identity if before else load_or_create(folder)
    invite = ticket.authority()
    chain = invite.certify_member(identity.public_key, invite.roles & roles, unix_s)
    member = verify_chain(chain, ticket.root, unix_s)
    if before is not None:
        before.chain, before.member, before.peers = chain, member, ticket.peers
        before.save()
        return before
    boot = next_boot(folder, unix_s)
    _make_folder(folder)
    for name in ("issuer.key", "trust"):  # of a mesh that was left halfway
        remove(_path(folder, name))
    made = Credentials(
        folder, identity, boot, ticket.root, chain, member, Trust(ticket.root, CHECKS), peers=ticket.peers
    )
    made.save()
    return made


def load(folder: str, unix_s: float) -> Credentials | None:
    """What is on disk, with the number of a new boot; None if this node is in no mesh.

    Its certificates may have expired. Raises ConfigError if something is damaged, or is another key's than the node's.
    """
    kept = _read_membership(folder)
    if kept is None:
        return None
    identity = load_or_create(folder)
    path = _path(folder, "membership")
    try:
        member = read_chain(kept.chain, kept.root)
    except AdmissionError as error:
        raise damaged(path) from error
    if member.peer != identity.peer:
        raise ConfigError(
            f"the membership {path} is of peer {short_peer(member.peer)}, and the node's key is another",
            do_next="restore node.key beside it, or `lattica leave` and join with a new ticket",
        )
    peers = tuple((PeerId(peer), tuple(addresses)) for peer, addresses in kept.peers)
    issuing, trust = _read_issuing(folder, kept.root), _read_trust(folder, kept.root)
    boot = next_boot(folder, unix_s)
    return Credentials(folder, identity, boot, kept.root, list(kept.chain), member, trust, issuing, peers)


def leave(folder: str) -> bool:
    """Forget the mesh. The node's key stays, so it is the same peer in the next one. Whether there was a mesh."""
    there_was = os.path.exists(_path(folder, "membership"))
    for name in ("membership", "issuer.key", "trust", "table.snapshot", "table.journal"):
        remove(_path(folder, name))
    return there_was


# -- the recovery file -----------------------------------------------------------------------------------------------


_OTHER_COPY = "look for another copy of it: nothing else can make it again"


def recovery_path(folder: str, mesh: bytes) -> str:
    """Where the root key of a mesh founded by this node goes unless the user says otherwise."""
    return os.path.join(os.path.abspath(folder), f"lattica-recovery-{short_peer(PeerId(mesh))}.key")


def load_recovery(path: str) -> Authority:
    """The root key that the user has brought back. Raises ConfigError if the file is no recovery file."""
    root = read_key_file(path, "the recovery file", "found another mesh: this one is theirs as well", _OTHER_COPY)
    if root is None:
        raise ConfigError(f"there is no recovery file {path}", do_next="give the path of the one that `start` wrote")
    secret, certificates = root
    try:
        return Authority(secret, certificates[0])
    except AdmissionError as error:
        raise damaged(path, _OTHER_COPY) from error


def _write_recovery(folder: str, root: Authority, given: str | None) -> str:
    mesh = short_peer(PeerId(root.id))
    path = os.path.abspath(given or recovery_path(folder, root.id))
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists already", do_next="choose another recovery file; it may hold another mesh's")
    write_kept(
        path, key_file(f"Recovery key of lattica mesh {mesh}. Who has it rules the mesh: keep it offline.\n", root)
    )
    return path


# -- files -----------------------------------------------------------------------------------------------------------


def _path(folder: str, name: str) -> str:
    return os.path.join(folder, "mesh", name)


def _make_folder(folder: str) -> None:
    path = os.path.join(folder, "mesh")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _read_membership(folder: str) -> _Membership | None:
    path = _path(folder, "membership")
    data = read_kept(path, MEMBERSHIP_MAX_BYTES, "the membership", "nothing: it holds no secret")
    if data is None:
        return None
    try:
        kept = msgspec.msgpack.decode(data, type=_Membership)
    except DAMAGED as error:
        raise damaged(path) from error
    if kept.version > VERSION:
        raise ConfigError(f"{path} was written by a newer lattica", do_next="upgrade lattica here")
    return kept


def _read_trust(folder: str, root: bytes) -> Trust:
    path = _path(folder, "trust")
    data = read_kept(path, TRUST_MAX_BYTES, "the statements", "nothing: they hold no secret")
    try:
        known = [] if data is None else msgspec.msgpack.decode(data, type=list[bytes])
        return Trust(root, CHECKS, known)
    except (*DAMAGED, LatticaError) as error:
        raise ConfigError(f"{path} is damaged", do_next="remove it: other peers send its content again") from error


def _read_issuing(folder: str, root: bytes) -> Authority | None:
    path = _path(folder, "issuer.key")
    kept = read_key_file(path, "the issuing key", "revoke this issuer: `lattica issuer`")
    if kept is None:
        return None
    try:
        return Authority(kept[0], root, kept[1])
    except AdmissionError as error:
        raise damaged(path) from error
