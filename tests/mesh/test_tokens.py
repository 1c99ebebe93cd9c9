"""Job tokens: who submitted the root task may run code here, until then, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import AdmissionError, PermissionDeniedError, RemoteProtocolError
from lattica.ids import JobId
from lattica.mesh.certificates import DAY_S
from lattica.mesh.papers import write_paper
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.tokens import AHEAD_MAX_S, PURPOSE, TOKEN_MAX_BYTES, TOKEN_MAX_S, Submission, sign_token, verify_token
from lattica.mesh.trust import IssuerRevoked, PeerRevoked, Trust, write_statement
from lattica.testing.authority import FAKE_CHECKS, FakeKey, fake_root

NOW = 1_800_000_000.0
TOP = fake_root("mesh", NOW - 60 * DAY_S)
ISSUER = TOP.issuer("issuer", NOW - 60 * DAY_S)
KEY = FakeKey("submitter")
CHAIN = ISSUER.certify_member(KEY.public_key, MEMBER, NOW - DAY_S)
JOB = JobId(b"j" * 16)


def trust(*statements: bytes) -> Trust:
    made = Trust(TOP.root, FAKE_CHECKS)
    made.merge(statements, NOW + DAY_S)
    return made


def token(chain: list[bytes] = CHAIN, issued: float = NOW, expires: float = NOW + 3600, **limits: float) -> bytes:
    return sign_token(JOB, limits, issued, expires, signer=KEY, chain=chain, mesh=TOP.id)


def verify(data: bytes, now: float = NOW, known: Trust | None = None) -> Submission:
    return verify_token(data, TOP.root, known or trust(), now)


def test_a_token_says_who_may_run_which_job_within_which_limits_until_when() -> None:
    assert verify(token(gpu=1.0, cpu=4)) == Submission(KEY.peer, MEMBER, JOB, {"cpu": 4.0, "gpu": 1.0}, NOW + 3600)


def test_a_token_ends_when_it_says_and_no_later_than_its_signer_s_certificate() -> None:
    assert verify(token(), NOW + 3599)
    with pytest.raises(AdmissionError, match=r"(?s)token expired on 2027-01-15 09:00 UTC.*renews its tokens"):
        verify(token(), NOW + 3600)
    end = FAKE_CHECKS.member(CHAIN, TOP.root, None).expires
    assert verify(token(issued=end - 60, expires=end + 60), end - 60).expires == end
    with pytest.raises(AdmissionError, match="a certificate of its chain has expired"):
        verify(token(issued=end - 60, expires=end + 60), end + 1)


def test_a_token_is_made_for_a_day_at_most_and_a_longer_one_is_refused() -> None:
    assert verify(token(expires=NOW + 30 * DAY_S)).expires == NOW + TOKEN_MAX_S
    body = msgspec.msgpack.encode([JOB, {}, NOW, NOW + TOKEN_MAX_S + 1])
    with pytest.raises(AdmissionError, match="another time"):
        verify(write_paper(PURPOSE, body, KEY, CHAIN, TOP.id))


def test_a_token_from_a_clock_that_is_ahead_is_taken_if_it_is_not_far_ahead() -> None:
    assert verify(token(issued=NOW + AHEAD_MAX_S, expires=NOW + 7200))
    with pytest.raises(AdmissionError, match=r"(?s)another time.*lattica doctor"):
        verify(token(issued=NOW + AHEAD_MAX_S + 1, expires=NOW + 7200))


@pytest.mark.parametrize("roles", [EVERYTHING & ~Role.SUBMIT, Role.RELAY, Role(0)])
def test_a_submitter_without_the_role_is_refused_and_the_role_is_named(roles: Role) -> None:
    with pytest.raises(PermissionDeniedError, match="lacks the role submit") as refused:
        verify(token(ISSUER.certify_member(KEY.public_key, roles, NOW)))
    assert refused.value.role == "submit"


def test_a_submitter_that_claims_more_than_its_invite_gives_is_refused() -> None:
    relay = ISSUER.invite(Role.RELAY, NOW)
    relay.__class__ = type("Liar", (type(relay),), {"roles": EVERYTHING})
    with pytest.raises(PermissionDeniedError):
        verify(token(relay.certify_member(KEY.public_key, EVERYTHING, NOW)))


@pytest.mark.parametrize("says", [PeerRevoked(KEY.peer, b"", "sold"), IssuerRevoked(ISSUER.id, NOW - 2 * DAY_S)])
def test_the_token_of_a_revoked_submitter_is_refused(says: Any) -> None:
    known = trust(write_statement(says, NOW, TOP, [], TOP.id))
    with pytest.raises(AdmissionError, match=r"submitter, peer \w{52}, is refused: .*revoked"):
        verify(token(), known=known)


def another_peer_s_chain() -> bytes:
    other = ISSUER.certify_member(FakeKey("other").public_key, MEMBER, NOW)
    return sign_token(JOB, {}, NOW, NOW + 60, signer=KEY, chain=other, mesh=TOP.id)


def another_mesh() -> bytes:
    mesh = fake_root("other", NOW)
    chain = mesh.issuer("x", NOW).certify_member(KEY.public_key, MEMBER, NOW)
    return sign_token(JOB, {}, NOW, NOW + 60, signer=KEY, chain=chain, mesh=mesh.id)


def for_another_mesh() -> bytes:
    return sign_token(JOB, {}, NOW, NOW + 60, signer=KEY, chain=CHAIN, mesh=b"m" * 32)


def signed_by_the_root() -> bytes:
    return sign_token(JOB, {}, NOW, NOW + 60, signer=TOP, chain=[], mesh=TOP.id)


def signed_for_another_purpose() -> bytes:
    return write_paper("statement", msgspec.msgpack.encode([JOB, {}, NOW, NOW + 60]), KEY, CHAIN, TOP.id)


@pytest.mark.parametrize(
    "forge",
    [another_peer_s_chain, another_mesh, for_another_mesh, signed_by_the_root, signed_for_another_purpose],
)
def test_a_token_that_no_member_made_for_this_is_refused(forge: Callable[[], bytes]) -> None:
    with pytest.raises(AdmissionError):
        verify(forge())


@pytest.mark.parametrize(
    "body",
    [
        [b"short", {}, NOW, NOW + 1],
        [JOB, {"cpu": -1.0}, NOW, NOW + 1],
        [JOB, {"cpu": float("nan")}, NOW, NOW + 1],
        [JOB, {"c" * 65: 1.0}, NOW, NOW + 1],
        [JOB, {str(n): 1.0 for n in range(33)}, NOW, NOW + 1],
        [JOB, {}, NOW, NOW - 1],
        [JOB, {}, NOW, float("inf")],
        [JOB, {}, float("nan"), NOW],
        [JOB, {}, -1.0, NOW],
        [JOB, {}],
        [],
        "words",
    ],
)
def test_a_token_that_says_what_cannot_be_is_refused(body: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        verify(write_paper(PURPOSE, msgspec.msgpack.encode(body), KEY, CHAIN, TOP.id))


def test_a_token_has_a_longest_size() -> None:
    with pytest.raises(RemoteProtocolError, match="may have 8192"):
        verify(bytes(TOKEN_MAX_BYTES + 1))


@given(st.binary(max_size=300))
def test_noise_is_no_token(noise: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        verify(noise)


@given(st.data())
def test_a_bent_token_is_refused(data: st.DataObject) -> None:
    whole = token(cpu=1.0)
    bent = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        bent[data.draw(st.integers(0, 1 << 16)) % len(bent)] = data.draw(st.integers(0, 255))
    if bytes(bent) != whole:
        with pytest.raises((RemoteProtocolError, AdmissionError)):
            verify(bytes(bent))
