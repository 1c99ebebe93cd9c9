"""What a chain of certificates proves, and what it does not."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import AdmissionError
from lattica.mesh import authority, certificates
from lattica.mesh.authority import ISSUER_S, MEMBERSHIP_S, Authority, make_root, new_secret, public_key_of
from lattica.mesh.certificates import BACKDATED_S, CHECKS, DAY_S, Facts, Member, read_chain, verify_chain
from lattica.mesh.identity import peer_id_of
from lattica.mesh.roles import EVERYTHING, MEMBER, Role

NOW = 1_800_000_000.0
SECRET = bytes(range(32))
KEY = public_key_of(SECRET)


class Mesh:
    """A root, an issuer under it, an issuer under that, and an invite of each."""

    def __init__(self) -> None:
        self.top = make_root(NOW)
        self.root = self.top.root
        self.issuer = certified(self.top)
        self.second = certified(self.issuer)
        self.invite = self.issuer.invite(MEMBER, NOW)
        self.far_invite = self.second.invite(MEMBER, NOW)

    def verify(self, chain: list[bytes], at: float = NOW) -> Member:
        return verify_chain(chain, self.root, at)


def certified(by: Authority) -> Authority:
    secret = new_secret()
    return Authority(secret, by.root, by.certify_issuer(public_key_of(secret), NOW))


class Liar(Authority):
    """Claims whatever it likes for those it certifies."""

    roles = EVERYTHING  # type: ignore[assignment]


@functools.cache
def the_mesh() -> Mesh:
    return Mesh()


@pytest.fixture(name="mesh")
def _mesh() -> Mesh:
    return the_mesh()


# -- what is proved -------------------------------------------------------------------------------------------------


def test_a_member_certified_by_an_issuer_is_known_by_its_key_and_its_roles(mesh: Mesh) -> None:
    chain = mesh.issuer.certify_member(KEY, MEMBER, NOW, invite=mesh.invite.id)
    assert mesh.verify(chain) == Member(
        peer=peer_id_of(KEY),
        public_key=KEY,
        roles=MEMBER,
        mesh=mesh.top.id,
        invite=mesh.invite.id,
        via_invite=False,
        issuers=((mesh.issuer.id, NOW),),
        expires=NOW + MEMBERSHIP_S,
        serial=certificates.read_certificate(chain[0]).serial,
    )


def test_a_member_by_invite_lasts_as_long_as_the_invite(mesh: Mesh) -> None:
    invite = mesh.issuer.invite(MEMBER, NOW, ttl_s=600)
    member = mesh.verify(invite.certify_member(KEY, EVERYTHING, NOW + 60))
    assert (member.via_invite, member.invite, member.expires) == (True, invite.id, NOW + 600)
    assert member.issuers == ((mesh.issuer.id, NOW),), "the issuer signed the invite, then"


def test_chains_reach_as_far_as_root_issuer_issuer_invite_member(mesh: Mesh) -> None:
    member = mesh.verify(mesh.far_invite.certify_member(KEY, MEMBER, NOW))
    assert [issuer for issuer, _ in member.issuers] == [mesh.second.id, mesh.issuer.id]
    assert mesh.verify(mesh.second.certify_member(KEY, MEMBER, NOW)).certified == NOW


def test_issuers_last_twenty_years_and_the_root_for_ever(mesh: Mesh) -> None:
    assert mesh.issuer.expires == NOW + ISSUER_S
    late = NOW + ISSUER_S - 40 * DAY_S
    assert mesh.verify(mesh.issuer.certify_member(KEY, MEMBER, late), late).expires == late + MEMBERSHIP_S
    with pytest.raises(AdmissionError, match="certifies nobody any more"):
        mesh.issuer.certify_member(KEY, MEMBER, NOW + ISSUER_S)


def test_a_clock_that_is_less_than_an_hour_behind_exiles_nobody(mesh: Mesh) -> None:
    chain = mesh.issuer.certify_member(KEY, MEMBER, NOW)
    mesh.verify(chain, NOW - BACKDATED_S)
    with pytest.raises(AdmissionError, match="clocks differ by more than an hour"):
        mesh.verify(chain, NOW - BACKDATED_S - 1)


@given(st.integers(0, 31), st.integers(0, 31), st.integers(0, 31))
def test_roles_are_the_intersection_along_the_chain(issuer: int, invite: int, leaf: int) -> None:
    facts = [
        Facts("peer", "invite", KEY, -1, Role(leaf), b"", NOW, NOW + 1, 1),
        Facts("invite", "issuer", KEY, 0, Role(invite), b"", NOW, NOW + 1, 1),
        Facts("issuer", "mesh", KEY, 2, Role(issuer), b"", NOW, NOW + 1, 1),
    ]
    root = Facts("mesh", "mesh", KEY, 4, Role(0), b"", NOW, NOW + 1, 1)
    assert certificates.member_of(facts, root).roles == Role(issuer & invite & leaf)


def test_a_leaf_that_claims_a_role_its_invite_lacks_does_not_get_it(mesh: Mesh) -> None:
    relay = mesh.issuer.invite(Role.RELAY, NOW)
    liar = Liar(relay.secret(), relay.root, relay.chain)
    chain = liar.certify_member(KEY, EVERYTHING, NOW)
    assert certificates.read_certificate(chain[0]).roles == EVERYTHING, "that is what it claims"
    assert mesh.verify(chain).roles == Role.RELAY


def test_a_certificate_without_our_extension_has_no_roles(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "ROLES_OID", "2.25.1")
    chain = mesh.issuer.certify_member(KEY, MEMBER, NOW)
    assert mesh.verify(chain).roles == Role(0)


# -- what is refused ------------------------------------------------------------------------------------------------


def another_mesh(mesh: Mesh) -> list[bytes]:
    return Mesh().issuer.certify_member(KEY, MEMBER, NOW)


def signed_by_itself(mesh: Mesh) -> list[bytes]:
    own = certificates.read_certificate(mesh.issuer.certify_member(KEY, MEMBER, NOW)[0])
    return [authority.make_certificate(own, SECRET), *mesh.issuer.chain]


def a_false_issuer_of_the_same_name(mesh: Mesh) -> list[bytes]:
    """Root and issuer with the names of ours and other keys."""
    secret = new_secret()
    facts = replace(certificates.read_certificate(mesh.issuer.chain[0]), public_key=public_key_of(secret))
    false = Authority(secret, mesh.root, [authority.make_certificate(facts, new_secret())])
    return false.certify_member(KEY, MEMBER, NOW)


def a_leaf_that_certifies(mesh: Mesh) -> list[bytes]:
    secret = new_secret()
    leaf = mesh.issuer.certify_member(public_key_of(secret), EVERYTHING, NOW)
    above = certificates.read_certificate(leaf[0])
    facts = replace(above, subject="peer x", issuer=above.subject, public_key=KEY)
    return [authority.make_certificate(facts, secret), *leaf]


def an_invite_under_an_invite(mesh: Mesh) -> list[bytes]:
    return mesh.invite.invite(MEMBER, NOW).certify_member(KEY, MEMBER, NOW)


def an_issuer_under_an_invite(mesh: Mesh) -> list[bytes]:
    secret = new_secret()
    invite = certificates.read_certificate(mesh.invite.chain[0])
    facts = replace(invite, subject="issuer x", issuer=invite.subject, public_key=public_key_of(secret), path_length=2)
    own = authority.make_certificate(facts, mesh.invite.secret())
    return Authority(secret, mesh.root, [own, *mesh.invite.chain]).certify_member(KEY, MEMBER, NOW)


def three_issuers(mesh: Mesh) -> list[bytes]:
    secret = new_secret()
    above = certificates.read_certificate(mesh.second.chain[0])
    facts = replace(above, subject="issuer x", issuer=above.subject, public_key=public_key_of(secret))
    own = authority.make_certificate(facts, mesh.second.secret())
    return Authority(secret, mesh.root, [own, *mesh.second.chain]).certify_member(KEY, MEMBER, NOW)


def no_issuer(mesh: Mesh) -> list[bytes]:
    return mesh.top.certify_member(KEY, MEMBER, NOW)


def an_invite_of_the_root(mesh: Mesh) -> list[bytes]:
    return mesh.top.invite(MEMBER, NOW).certify_member(KEY, MEMBER, NOW)


def an_issuer_in_place_of_a_member(mesh: Mesh) -> list[bytes]:
    return list(mesh.second.chain)


def a_membership_of_years(mesh: Mesh) -> list[bytes]:
    facts = certificates.read_certificate(mesh.issuer.certify_member(KEY, MEMBER, NOW)[0])
    leaf = authority.make_certificate(replace(facts, ends=NOW + 100 * DAY_S), mesh.issuer.secret())
    return [leaf, *mesh.issuer.chain]


def a_missing_link(mesh: Mesh) -> list[bytes]:
    leaf, _, *rest = mesh.second.certify_member(KEY, MEMBER, NOW)
    return [leaf, *rest]


def nothing(mesh: Mesh) -> list[bytes]:
    return []


def another_kind_of_key(mesh: Mesh) -> list[bytes]:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "peer x")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    facts = x509.load_der_x509_certificate(mesh.issuer.chain[0])
    builder = builder.not_valid_before(facts.not_valid_before_utc).not_valid_after(facts.not_valid_after_utc)
    from cryptography.hazmat.primitives.hashes import SHA256

    return [builder.sign(key, SHA256()).public_bytes(Encoding.DER), *mesh.issuer.chain]


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (another_mesh, "not one chain of this mesh"),
        (signed_by_itself, "signature in its chain is wrong|of another mesh"),
        (a_false_issuer_of_the_same_name, "signature in its chain is wrong|of another mesh"),
        (a_leaf_that_certifies, "may not certify others|no issuer"),
        (an_invite_under_an_invite, "may not certify others"),
        (an_issuer_under_an_invite, "more issuers"),
        (three_issuers, "more issuers"),
        (no_issuer, "no issuer of the mesh"),
        (an_invite_of_the_root, "no issuer of the mesh"),
        (an_issuer_in_place_of_a_member, "certifying others"),
        (a_membership_of_years, "for too long"),
        (a_missing_link, "not one chain"),
        (nothing, "empty"),
        (another_kind_of_key, "not an Ed25519 key"),
    ],
)
def test_a_chain_that_proves_nothing_is_refused(mesh: Mesh, forge: Callable[[Mesh], list[bytes]], reason: str) -> None:
    with pytest.raises(AdmissionError, match=reason):
        mesh.verify(forge(mesh))


@pytest.mark.parametrize(
    "forge", [a_leaf_that_certifies, an_invite_under_an_invite, an_issuer_under_an_invite, signed_by_itself]
)
def test_openssl_alone_refuses_those_who_certify_and_may_not(forge: Callable[[Mesh], list[bytes]]) -> None:
    """Without our own reading of shapes: TLS has only this one during the handshake."""
    mesh = the_mesh()
    with pytest.raises(AdmissionError, match=r"may not issue|longer than|signature in its chain|of another mesh"):
        certificates._verify(forge(mesh), mesh.root, NOW)


def test_an_expired_certificate_anywhere_in_the_chain_is_refused(mesh: Mesh) -> None:
    chain = mesh.invite.certify_member(KEY, MEMBER, NOW)
    mesh.verify(chain, mesh.invite.expires - 1)
    with pytest.raises(AdmissionError, match="has expired"):
        mesh.verify(chain, mesh.invite.expires + 1)
    read_chain(chain, mesh.root)  # which looks at no clock


@pytest.mark.parametrize("at", [-1.0, float("nan"), float("inf"), 1e18])
def test_a_time_that_is_none_is_refused(mesh: Mesh, at: float) -> None:
    with pytest.raises(AdmissionError, match="the time"):
        mesh.verify(mesh.issuer.certify_member(KEY, MEMBER, NOW), at)


def test_only_the_root_and_its_own_issuers_make_issuers(mesh: Mesh) -> None:
    for key in (mesh.second, mesh.invite):
        assert not key.may_issue_issuers
        with pytest.raises(AdmissionError, match=r"(?s)may not certify issuers.*recovery file"):
            key.certify_issuer(KEY, NOW)


def test_the_key_of_an_issuer_is_what_its_chain_entitles(mesh: Mesh) -> None:
    assert CHECKS.issuing_key([], mesh.root, NOW) == mesh.top.public_key
    assert CHECKS.issuing_key(mesh.second.chain, mesh.root, NOW) == mesh.second.public_key
    for chain in (
        mesh.invite.chain,
        three_issuers(mesh)[1:],
        mesh.issuer.certify_member(KEY, MEMBER, NOW),
        Mesh().issuer.chain,
        a_false_issuer_of_the_same_name(mesh)[1:],
    ):
        with pytest.raises(AdmissionError):
            CHECKS.issuing_key(chain, mesh.root, NOW)


def test_a_key_and_a_certificate_that_do_not_belong_together_make_no_authority(mesh: Mesh) -> None:
    with pytest.raises(AdmissionError, match="not one of this key"):
        Authority(new_secret(), mesh.root, mesh.issuer.chain)
    with pytest.raises(AdmissionError, match="not one of this key"):
        Authority(SECRET, mesh.root, mesh.issuer.certify_member(KEY, MEMBER, NOW))
    with pytest.raises(AdmissionError, match="length"):
        Authority(b"short", mesh.root)


def test_signatures_are_those_of_the_key(mesh: Mesh) -> None:
    signature = mesh.issuer.sign(b"words")
    assert CHECKS.signed(mesh.issuer.public_key, signature, b"words")
    for key, signed, data in (
        (KEY, signature, b"words"),
        (mesh.issuer.public_key, signature, b"other words"),
        (mesh.issuer.public_key, b"", b"words"),
        (b"no key", signature, b"words"),
    ):
        assert not CHECKS.signed(key, signed, data)


def test_an_authority_shows_no_secret_and_is_never_pickled(mesh: Mesh) -> None:
    assert mesh.issuer.secret().hex() not in repr(mesh.issuer)
    assert repr(mesh.issuer).startswith("<Authority issuer ")
    with pytest.raises(TypeError, match="never leaves"):
        pickle.dumps(mesh.issuer)


# -- noise ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=600), max_size=6))
def test_noise_is_no_chain(chain: list[bytes]) -> None:
    with pytest.raises(AdmissionError):
        verify_chain(chain, the_mesh().root, NOW)


@given(st.data())
def test_a_bent_certificate_proves_no_other_member(data: st.DataObject) -> None:
    """Whatever byte of a chain is changed, it is refused: all of it is signed."""
    mesh = the_mesh()
    chain = mesh.far_invite.certify_member(KEY, MEMBER, NOW)
    which = data.draw(st.integers(0, len(chain) - 1))
    place = data.draw(st.integers(0, 1 << 16)) % len(chain[which])  # serial numbers vary in length
    bent = bytearray(chain[which])
    bent[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AdmissionError):
        mesh.verify([*chain[:which], bytes(bent), *chain[which + 1 :]])


@given(st.data())
def test_reading_a_bent_certificate_ends_in_facts_or_a_refusal(data: st.DataObject) -> None:
    der = bytearray(the_mesh().issuer.chain[0])
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, 1 << 16)) % len(der)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(der)))
    try:
        certificates.read_certificate(bytes(der[:cut] if data.draw(st.booleans()) else der))
    except AdmissionError:
        pass


def test_importing_the_modules_loads_no_cryptography() -> None:
    names = "certificates authority papers trust tickets tokens admission renewal credentials"
    code = f"""
import sys, importlib
for name in {names.split()}: importlib.import_module("lattica.mesh." + name)
print({{"cryptography", "OpenSSL", "blake3"}} & set(sys.modules))"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
