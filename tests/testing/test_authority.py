"""Certificates of simulated worlds prove what real ones do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lattica.errors import AdmissionError
from lattica.mesh.authority import Authority, make_root, new_secret, public_key_of
from lattica.mesh.certificates import CHECKS, DAY_S
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.testing.authority import FAKE_CHECKS, FakeAuthority, FakeKey, fake_root

NOW = 1_800_000_000.0
KEY = FakeKey("peer").public_key
REAL_KEY = public_key_of(bytes(32))


def real_issuer(by: Authority) -> Authority:
    secret = new_secret()
    return Authority(secret, by.root, by.certify_issuer(public_key_of(secret), NOW))


def fake_issuer(by: FakeAuthority) -> FakeAuthority:
    return by.issuer(f"under {by.id.hex()}", NOW)


def chains(root: Any, issuer_of: Callable[[Any], Any], key: bytes) -> dict[str, Sequence[bytes]]:
    """The same stories with either kind of certificates."""
    first = issuer_of(root)
    second = issuer_of(first)
    short = first.invite(Role.EXECUTE, NOW, ttl_s=60)
    return {
        "a member": first.certify_member(key, MEMBER, NOW, invite=b"i" * 32),
        "of a second issuer": second.certify_member(key, EVERYTHING, NOW),
        "by invite": second.invite(MEMBER, NOW).certify_member(key, EVERYTHING, NOW),
        "by an invite that has ended": short.certify_member(key, EVERYTHING, NOW),
        "of the root": root.certify_member(key, MEMBER, NOW),
        "of an invite's invite": short.invite(MEMBER, NOW).certify_member(key, MEMBER, NOW),
        "an issuer": second.chain,
        "from tomorrow": first.certify_member(key, MEMBER, NOW + DAY_S),
        "nothing": [],
        "noise": [b"noise"],
        "too long": [*short.certify_member(key, MEMBER, NOW), *second.chain],
    }


def test_both_say_the_same_of_the_same_chains() -> None:
    real, fake = make_root(NOW), fake_root("mesh", NOW)

    def verdicts(checks: Any, root: Any, issuer_of: Any, key: bytes) -> dict[str, object]:
        said: dict[str, object] = {}
        for name, chain in chains(root, issuer_of, key).items():
            for at in (None, NOW + 120):
                try:
                    member = checks.member(chain, root.root, at)
                    said[f"{name} at {at}"] = (
                        member.roles, bool(member.invite), member.via_invite, len(member.issuers), member.expires,
                        member.certified,
                    )  # fmt: skip
                except AdmissionError:
                    said[f"{name} at {at}"] = "refused"
        return said

    expected = verdicts(CHECKS, real, real_issuer, REAL_KEY)
    assert verdicts(FAKE_CHECKS, fake, fake_issuer, KEY) == expected
    assert 0 < list(expected.values()).count("refused") < len(expected)


@pytest.mark.parametrize(
    ("checks", "root", "issuer_of"),
    [(CHECKS, make_root(NOW), real_issuer), (FAKE_CHECKS, fake_root("mesh", NOW), fake_issuer)],
    ids=["real", "fake"],
)
def test_both_say_who_may_issue(checks: Any, root: Any, issuer_of: Callable[[Any], Any]) -> None:
    first = issuer_of(root)
    second = issuer_of(first)
    assert checks.issuing_key([], root.root, NOW) == root.public_key
    assert checks.issuing_key(second.chain, root.root, NOW) == second.public_key
    invite, member = second.invite(MEMBER, NOW).chain, second.certify_member(REAL_KEY, MEMBER, NOW)
    for chain in (invite, [*second.chain, *second.chain], member):
        with pytest.raises(AdmissionError):
            checks.issuing_key(chain, root.root, NOW)


def test_the_same_names_make_the_same_keys_and_tickets() -> None:
    one, other = (fake_root("mesh", NOW).issuer("a", NOW) for _ in range(2))
    assert one.chain == other.chain
    assert [one.invite(MEMBER, NOW).id for _ in range(3)] == [other.invite(MEMBER, NOW).id for _ in range(3)]
    assert len({one.invite(MEMBER, NOW).id for _ in range(3)}) == 3


def test_a_signature_is_of_its_key_and_its_words() -> None:
    key = FakeKey("ann")
    assert FAKE_CHECKS.signed(key.public_key, key.sign(b"words"), b"words")
    assert not FAKE_CHECKS.signed(key.public_key, key.sign(b"words"), b"other words")
    assert not FAKE_CHECKS.signed(FakeKey("bob").public_key, key.sign(b"words"), b"words")
