"""The `renew` door: what is parsed from one who has no certificate, and who gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import AdmissionError, RemoteProtocolError
from lattica.mesh import renewal
from lattica.mesh.admission import RENEWABLE_S, Refusal, answer
from lattica.mesh.authority import Authority, make_root, new_secret, public_key_of
from lattica.mesh.certificates import CHECKS, DAY_S, Member
from lattica.mesh.papers import write_paper
from lattica.mesh.renewal import read_answer, sign_renewal, verify_renewal, write_answer
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.trust import IssuerRevoked, PeerRevoked, Trust, write_statement
from lattica.testing.authority import FAKE_CHECKS, FakeKey, fake_root

BEGAN = 1_800_000_000.0
TOP = fake_root("mesh", BEGAN)
ISSUER = TOP.issuer("issuer", BEGAN)
INVITE = ISSUER.invite(MEMBER, BEGAN)
KEY = FakeKey("laptop")
CHAIN = ISSUER.certify_member(KEY.public_key, MEMBER, BEGAN, invite=INVITE.id)
NONCE = b"n" * 32


def trust(*says: PeerRevoked | IssuerRevoked) -> Trust:
    made = Trust(TOP.root, FAKE_CHECKS)
    made.merge([write_statement(one, BEGAN + DAY_S, TOP, [], TOP.id) for one in says], BEGAN + DAY_S)
    return made


def request(chain: list[bytes] = CHAIN, nonce: bytes = NONCE, key: FakeKey = KEY) -> bytes:
    return sign_renewal(nonce, signer=key, chain=chain, mesh=TOP.id)


def verify(data: bytes, days: float, known: Trust | None = None) -> Member:
    return verify_renewal(data, NONCE, TOP.root, known or trust(), BEGAN + days * DAY_S)


@pytest.mark.parametrize("days", [1, 29, 31, 40, 209])
def test_a_member_is_known_again_by_its_old_chain(days: float) -> None:
    member = verify(request(), days)
    assert (member.peer, member.roles, member.invite) == (KEY.peer, MEMBER, INVITE.id)


def test_a_member_that_expired_more_than_180_days_ago_is_told_to_ask_for_a_ticket() -> None:
    assert RENEWABLE_S == 180 * DAY_S
    with pytest.raises(AdmissionError, match=r"(?s)more than 180 days ago.*lattica ticket.*keeps its id"):
        verify(request(), 210)


def test_an_invite_that_has_ended_is_no_membership_to_be_renewed() -> None:
    by_invite = request(INVITE.certify_member(KEY.public_key, MEMBER, BEGAN))
    assert verify(by_invite, 6).via_invite
    with pytest.raises(AdmissionError, match=r"(?s)ticket expired.*lattica ticket"):
        verify(by_invite, 8)


def test_a_revoked_peer_is_not_renewed() -> None:
    with pytest.raises(AdmissionError, match=r"(?s)revoked.*ask an admin"):
        verify(request(), 40, trust(PeerRevoked(KEY.peer)))


def test_who_was_certified_by_an_issuer_before_its_end_may_renew_at_another() -> None:
    assert verify(request(), 40, trust(IssuerRevoked(ISSUER.id, BEGAN + 1)))
    with pytest.raises(AdmissionError, match="the issuer that certified it was revoked"):
        verify(request(), 40, trust(IssuerRevoked(ISSUER.id, BEGAN)))


def test_a_request_answers_one_nonce_is_signed_by_its_key_and_shows_its_chain() -> None:
    other = FakeKey("other")
    for wrong in (
        request(nonce=b"m" * 32),
        request(key=other),
        request([]),
        request(fake_root("other", BEGAN).issuer("i", BEGAN).certify_member(KEY.public_key, MEMBER, BEGAN)),
        sign_renewal(NONCE, signer=KEY, chain=CHAIN, mesh=b"m" * 32),
        write_paper("statement", NONCE, KEY, CHAIN, TOP.id),
        sign_renewal(NONCE, signer=TOP, chain=[], mesh=TOP.id),
    ):
        with pytest.raises(AdmissionError):
            verify(wrong, 40)
    with pytest.raises(AdmissionError, match="another question"):
        verify_renewal(request(nonce=b""), b"", TOP.root, trust(), BEGAN)


def test_a_request_has_a_longest_size() -> None:
    with pytest.raises(RemoteProtocolError, match="may have 16384"):
        verify(bytes(renewal.RENEWAL_MAX_BYTES + 1), 40)


@given(st.binary(max_size=300))
def test_noise_is_neither_a_request_nor_an_answer(noise: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        verify(noise, 40)
    try:
        assert isinstance(read_answer(noise), list | Refusal)
    except RemoteProtocolError:
        pass


@given(st.data())
def test_a_bent_request_is_refused(data: st.DataObject) -> None:
    whole = request()
    bent = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        bent[data.draw(st.integers(0, 1 << 16)) % len(bent)] = data.draw(st.integers(0, 255))
    if bytes(bent) != whole:
        with pytest.raises((RemoteProtocolError, AdmissionError)):
            verify(bytes(bent), 40)


def test_an_answer_is_read_as_it_was_written() -> None:
    for said in (CHAIN, Refusal("because", True), Refusal("later", False)):
        assert read_answer(write_answer(said)) == said


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\xa1x", b"\x91\x95" + b"\xc4\x01a" * 5, bytes(1 << 20)])
def test_an_answer_that_cannot_be_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_answer(data)


def test_a_laptop_asleep_for_40_days_is_certified_again_with_real_signatures() -> None:
    root = make_root(BEGAN)
    secret, own = new_secret(), new_secret()
    issuer = Authority(secret, root.root, root.certify_issuer(public_key_of(secret), BEGAN))
    old = issuer.certify_member(public_key_of(own), MEMBER | Role.ADMIN, BEGAN, invite=b"i" * 32)
    late = BEGAN + 40 * DAY_S
    with pytest.raises(AdmissionError, match="expired"):
        CHECKS.member(old, root.root, late)
    known = Trust(root.root, CHECKS)
    key = Authority(own, root.root, [root.certify_issuer(public_key_of(own), BEGAN)[0]])  # a key with `sign`
    asked = sign_renewal(NONCE, signer=key, chain=old, mesh=root.id)
    assert len(asked) < 4096
    member = verify_renewal(asked, NONCE, root.root, known, late)
    chain = answer(issuer, known, member, late)
    assert isinstance(chain, list)
    again = CHECKS.member(chain, root.root, late)
    assert (again.peer, again.roles, again.invite, again.expires) == (
        member.peer, MEMBER | Role.ADMIN, b"i" * 32, late + 30 * DAY_S,
    )  # fmt: skip
    assert again.roles == EVERYTHING
