"""What a node keeps of its membership on disk, and how it comes by it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import msgspec
import pytest

from lattica.errors import AdmissionError, ConfigError
from lattica.mesh import credentials, keyfiles
from lattica.mesh.certificates import CHECKS, DAY_S, verify_chain
from lattica.mesh.credentials import Credentials, found, join, leave, load, load_recovery, recovery_path
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.tickets import Ticket, make_ticket
from lattica.mesh.trust import PeerRevoked, write_statement

NOW = 1_800_000_000.0


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "founder" / "identity")


@pytest.fixture
def founder(home: str) -> Credentials:
    return found(home, NOW)


def ticket_of(founder: Credentials, roles: Role = MEMBER, now: float = NOW) -> Ticket:
    assert founder.issuing is not None
    return make_ticket(founder.issuing.invite(roles, now), [(founder.identity.peer, ["192.0.2.7:9200"])])


def elsewhere(tmp_path: Path, name: str = "joiner") -> str:
    return str(tmp_path / name / "identity")


# -- founding -------------------------------------------------------------------------------------------------------


def test_a_founder_is_the_first_member_admin_and_issuer(founder: Credentials) -> None:
    member = verify_chain(founder.chain, founder.root, NOW)
    assert member == founder.member
    assert (member.peer, member.roles, member.via_invite) == (founder.identity.peer, EVERYTHING, False)
    assert [(one.peer, one.label) for one in founder.trust.issuers()] == [(founder.identity.peer, "founder")]
    assert founder.issuing is not None and founder.issuing.id == founder.trust.issuers()[0].id


def test_the_root_key_lies_in_the_recovery_file_alone(founder: Credentials, home: str) -> None:
    path = recovery_path(home, founder.mesh)
    assert path == founder.recovery_file
    assert os.path.basename(path) == f"lattica-recovery-{short_peer(PeerId(founder.mesh))}.key"
    assert os.stat(path).st_mode & 0o777 == 0o600
    secret = load_recovery(path).secret()
    for folder, _, names in os.walk(os.path.dirname(path)):
        for name in names:
            data = Path(folder, name).read_bytes()
            assert os.path.join(folder, name) == path or (secret not in data and b"Recovery" not in data)
    assert load(home, NOW + 60).recovery_file == ""  # type: ignore[union-attr]


def test_what_is_kept_is_kept_to_its_owner(founder: Credentials, home: str) -> None:
    kept = {path.name: path.stat().st_mode & 0o777 for path in Path(home, "mesh").iterdir()}
    assert kept == {"membership": 0o600, "issuer.key": 0o600, "trust": 0o600}
    assert os.stat(os.path.join(home, "mesh")).st_mode & 0o777 == 0o700


def test_the_recovery_file_goes_where_the_user_says_and_replaces_nothing(tmp_path: Path, home: str) -> None:
    (tmp_path / "mine.key").write_text("something dear")
    with pytest.raises(ConfigError, match="exists already"):
        found(home, NOW, str(tmp_path / "mine.key"))
    assert (tmp_path / "mine.key").read_text() == "something dear"
    assert load(home, NOW) is None, "nothing was founded"
    with pytest.raises(ConfigError, match="cannot be written"):
        found(home, NOW, str(tmp_path / "no" / "such" / "folder.key"))
    made = found(home, NOW, str(tmp_path / "other.key"))
    assert load_recovery(str(tmp_path / "other.key")).id == made.mesh


def test_the_root_key_certifies_a_new_issuer_when_all_others_are_gone(founder: Credentials, tmp_path: Path) -> None:
    member = join(elsewhere(tmp_path), ticket_of(founder), NOW)
    root = load_recovery(founder.recovery_file)
    late = NOW + 500 * DAY_S
    issuing = member.adopt_issuer(root.certify_issuer(member.draft_issuer(), late), late)
    assert issuing.may_issue_issuers
    assert load(member.folder, late).issuing.id == issuing.id  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data.replace(b"M", b"N", 5), "damaged"),
        (lambda data: data[: data.index(b"-----BEGIN CERT")], "damaged"),
        (lambda data: b"", "damaged"),
    ],
)
def test_a_damaged_recovery_file_says_that_another_copy_is_needed(founder: Credentials, change, reason: str) -> None:  # type: ignore[no-untyped-def]
    path = Path(founder.recovery_file)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConfigError, match=rf"(?s){reason}.*another copy") as refused:
        load_recovery(str(path))
    assert "PRIVATE" not in repr(refused.value.__cause__)


def test_a_recovery_file_that_is_not_there_or_open_to_others_is_refused(founder: Credentials, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recovery file"):
        load_recovery(str(tmp_path / "nothing"))
    os.chmod(founder.recovery_file, 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_recovery(founder.recovery_file)


# -- joining --------------------------------------------------------------------------------------------------------


def test_a_joiner_is_a_member_at_once_and_keeps_no_secret_of_the_ticket(founder: Credentials, tmp_path: Path) -> None:
    ticket = ticket_of(founder, Role.EXECUTE)
    made = join(elsewhere(tmp_path), ticket, NOW + 60)
    assert verify_chain(made.chain, founder.root, NOW + 60) == made.member
    assert (made.member.via_invite, made.member.roles, made.member.expires) == (True, Role.EXECUTE, ticket.expires)
    assert made.peers == ((founder.identity.peer, ("192.0.2.7:9200",)),)
    assert made.mesh == founder.mesh
    assert not [path for path in Path(made.folder).rglob("*") if path.is_file() and ticket.secret in path.read_bytes()]


def test_what_was_joined_is_found_again_with_a_new_boot(founder: Credentials, tmp_path: Path) -> None:
    made = join(elsewhere(tmp_path), ticket_of(founder), NOW)
    again = load(made.folder, NOW + 5)
    assert again is not None
    assert (again.identity.peer, again.root, again.chain, again.member, again.peers) == (
        made.identity.peer, made.root, made.chain, made.member, made.peers,
    )  # fmt: skip
    assert again.boot > made.boot
    assert again.issuing is None


def test_a_membership_replaces_the_invite_s_chain_for_good(founder: Credentials, tmp_path: Path) -> None:
    made = join(elsewhere(tmp_path), ticket_of(founder), NOW)
    assert founder.issuing is not None
    chain = founder.issuing.certify_member(made.identity.public_key, MEMBER, NOW, invite=made.member.invite)
    made.renew(chain, NOW)
    again = load(made.folder, NOW)
    assert again is not None
    assert (again.member.via_invite, again.chain) == (False, chain)


def test_a_chain_of_another_peer_or_mesh_is_not_taken(founder: Credentials, tmp_path: Path) -> None:
    other = found(elsewhere(tmp_path, "other"), NOW)
    for chain in (other.chain, founder.issuing.certify_member(b"k" * 32, MEMBER, NOW)):  # type: ignore[union-attr]
        with pytest.raises(AdmissionError):
            founder.renew(chain, NOW)
    assert load(founder.folder, NOW).chain == founder.chain  # type: ignore[union-attr]


def test_a_ticket_of_another_mesh_is_refused_until_the_node_has_left(founder: Credentials, tmp_path: Path) -> None:
    other = found(elsewhere(tmp_path, "other"), NOW)
    folder = elsewhere(tmp_path)
    before = join(folder, ticket_of(founder), NOW)
    with pytest.raises(AdmissionError, match=r"(?s)is in mesh.*lattica leave"):
        join(folder, ticket_of(other), NOW)
    assert load(folder, NOW).mesh == founder.mesh  # type: ignore[union-attr]
    assert leave(folder)
    after = join(folder, ticket_of(other), NOW)
    assert after.mesh == other.mesh
    assert after.identity.peer == before.identity.peer, "it is the same peer"
    assert after.boot > before.boot
    assert after.trust.statements() == []


def test_a_member_that_is_given_its_old_ticket_again_returns_to_its_membership(
    founder: Credentials, tmp_path: Path
) -> None:
    """A container starts with LATTICA_TICKET each time, long after that has expired."""
    folder, ticket = elsewhere(tmp_path), ticket_of(founder)
    made = join(folder, ticket, NOW)
    assert founder.issuing is not None
    chain = founder.issuing.certify_member(made.identity.public_key, MEMBER, NOW, invite=made.member.invite)
    made.renew(chain, NOW)
    assert join(folder, ticket, NOW + 20 * DAY_S).chain == chain


def test_a_peer_whose_membership_has_ended_comes_back_by_a_new_ticket_as_the_same_peer(
    founder: Credentials, tmp_path: Path
) -> None:
    folder = elsewhere(tmp_path)
    before = join(folder, ticket_of(founder), NOW)
    late = NOW + 300 * DAY_S
    after = join(folder, ticket_of(founder, now=late), late)
    assert after.member.expires > late
    assert load(folder, late).member == after.member  # type: ignore[union-attr]
    assert after.identity.peer == before.identity.peer


def test_a_ticket_with_another_role_gives_its_roles_to_a_member(founder: Credentials, tmp_path: Path) -> None:
    folder = elsewhere(tmp_path)
    join(folder, ticket_of(founder, Role.EXECUTE), NOW)
    assert join(folder, ticket_of(founder, Role.RELAY | Role.EXECUTE), NOW).member.roles == Role.RELAY | Role.EXECUTE
    assert join(folder, ticket_of(founder, Role.EXECUTE), NOW).member.roles == Role.RELAY | Role.EXECUTE


def test_an_expired_or_false_ticket_makes_no_member(founder: Credentials, tmp_path: Path) -> None:
    folder, ticket = elsewhere(tmp_path), ticket_of(founder)
    with pytest.raises(AdmissionError, match="the ticket expired"):
        join(folder, ticket, ticket.expires)
    other = ticket_of(found(elsewhere(tmp_path, "other"), NOW))
    mixed = Ticket(ticket.root, other.chain, other.secret, (), ticket.roles, ticket.expires)
    with pytest.raises(AdmissionError, match="not one chain of this mesh"):
        join(folder, mixed, NOW)
    with pytest.raises(AdmissionError, match="certificate"):
        join(folder, Ticket(b"root", other.chain, other.secret, (), MEMBER, ticket.expires), NOW)
    assert load(folder, NOW) is None


def test_a_node_in_a_mesh_founds_no_other(founder: Credentials) -> None:
    with pytest.raises(ConfigError, match=r"(?s)in a mesh already.*lattica leave"):
        found(founder.folder, NOW)


def test_leaving_forgets_the_mesh_and_not_the_key(founder: Credentials) -> None:
    assert leave(founder.folder)
    assert load(founder.folder, NOW) is None
    assert os.listdir(os.path.join(founder.folder, "mesh")) == []
    assert not leave(founder.folder)
    assert os.path.exists(founder.recovery_file), "that is the user's"
    assert found(founder.folder, NOW).identity.peer == founder.identity.peer


def test_who_was_never_in_a_mesh_has_no_credentials(tmp_path: Path) -> None:
    assert load(elsewhere(tmp_path), NOW) is None
    assert not leave(elsewhere(tmp_path))
    assert not os.path.exists(elsewhere(tmp_path)), "asking makes no key"


# -- issuing --------------------------------------------------------------------------------------------------------


def test_a_second_issuer_certifies_members_after_the_founder_is_gone(founder: Credentials, tmp_path: Path) -> None:
    second = join(elsewhere(tmp_path, "second"), ticket_of(founder, EVERYTHING), NOW)
    assert founder.issuing is not None
    issuing = second.adopt_issuer(founder.issuing.certify_issuer(second.draft_issuer(), NOW), NOW)
    chain = issuing.certify_member(second.identity.public_key, EVERYTHING, NOW, invite=second.member.invite)
    second.renew(chain, NOW)
    founder.trust.merge([second.name_issuer("second", NOW + 1)], NOW + 1)
    assert [one.label for one in founder.trust.issuers()] == ["founder", "second"]
    third = join(elsewhere(tmp_path, "third"), ticket_of(second), NOW)
    assert [issuer for issuer, _ in third.member.issuers] == [issuing.id, founder.issuing.id]
    assert load(second.folder, NOW).issuing.chain == issuing.chain  # type: ignore[union-attr]


def test_only_the_key_that_was_drafted_becomes_an_issuer_s(founder: Credentials, tmp_path: Path) -> None:
    second = join(elsewhere(tmp_path, "second"), ticket_of(founder, EVERYTHING), NOW)
    assert founder.issuing is not None
    chain = founder.issuing.certify_issuer(b"k" * 32, NOW)
    with pytest.raises(AdmissionError, match="no key of this node"):
        second.adopt_issuer(chain, NOW)
    assert second.draft_issuer() == second.draft_issuer()
    with pytest.raises(AdmissionError, match="not one of this key"):
        second.adopt_issuer(chain, NOW)
    with pytest.raises(AdmissionError):
        second.adopt_issuer(found(elsewhere(tmp_path, "other"), NOW).issuing.chain, NOW)  # type: ignore[union-attr]
    assert second.issuing is None and load(second.folder, NOW).issuing is None  # type: ignore[union-attr]


def test_what_the_admins_said_is_on_disk(founder: Credentials) -> None:
    word = write_statement(PeerRevoked(b"p" * 32), NOW, founder.identity, founder.chain, founder.mesh)
    founder.trust.merge([word], NOW)
    founder.save_trust()
    again = load(founder.folder, NOW)
    assert again is not None
    assert again.trust.digest() == founder.trust.digest()
    assert again.trust.checks is CHECKS


# -- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["membership", "issuer.key", "trust"])
def test_a_damaged_file_is_refused_with_the_way_out_and_never_replaced(founder: Credentials, name: str) -> None:
    path = Path(founder.folder, "mesh", name)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-50], b"\xc1" * 100, msgspec.msgpack.encode([1, b"r", [b"c"], []])):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"(?s)damaged.*(restore|remove)"):
            load(founder.folder, NOW)
        assert path.read_bytes() == damaged


def test_a_membership_of_a_later_release_is_left_alone(founder: Credentials) -> None:
    path = Path(founder.folder, "mesh", "membership")
    path.write_bytes(msgspec.msgpack.encode([2, *msgspec.msgpack.decode(path.read_bytes())[1:], "new"]))
    with pytest.raises(ConfigError, match="newer lattica"):
        load(founder.folder, NOW)


def test_a_membership_beside_another_key_is_refused(founder: Credentials) -> None:
    os.unlink(os.path.join(founder.folder, "node.key"))
    with pytest.raises(ConfigError, match=r"(?s)key is another.*restore node.key"):
        load(founder.folder, NOW)


def test_a_key_that_others_may_read_is_refused(founder: Credentials) -> None:
    os.chmod(os.path.join(founder.folder, "mesh", "issuer.key"), 0o640)
    with pytest.raises(ConfigError, match=r"(?s)issuing key .*open to others.*revoke this issuer"):
        load(founder.folder, NOW)


def test_a_node_that_dies_while_it_founds_a_mesh_has_none(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The membership is written last; the next start founds another mesh, with another recovery file."""
    written: list[str] = []

    def dies_at_the_last(path: str, data: bytes) -> None:
        if path.endswith("membership"):
            raise KeyboardInterrupt
        written.append(os.path.basename(path))
        keyfiles.write_private(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(credentials, "write_kept", dies_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            found(home, NOW)
    assert {"issuer.key", "trust"} < set(written)
    assert load(home, NOW) is None
    made = found(home, NOW)
    assert made.issuing is not None and load(home, NOW).issuing.id == made.issuing.id  # type: ignore[union-attr]


# -- secrets --------------------------------------------------------------------------------------------------------


def test_credentials_show_no_secret_and_are_never_pickled(founder: Credentials) -> None:
    founder.draft_issuer()
    assert founder.issuing is not None
    secrets = [founder.issuing.secret(), founder._draft, founder.identity.private_key().private_bytes_raw()]
    shown = f"{founder!r} {founder} {founder.issuing!r} {founder.identity!r}"
    assert not [one for one in secrets if one.hex() in shown or repr(one) in shown]
    assert shown.startswith(f"<Credentials {short_peer(founder.identity.peer)} in mesh ")
    assert "execute,submit,store,relay,admin, issuer, until 2027-02-14 08:00 UTC>" in shown
    with pytest.raises(TypeError, match="never leave"):
        pickle.dumps(founder)


def test_tls_gets_the_key_that_the_chain_is_for(founder: Credentials) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(founder.private_key_pem(), None)
    assert key.public_key().public_bytes_raw() == founder.member.public_key  # type: ignore[union-attr]
