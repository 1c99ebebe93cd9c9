"""What is said of objects elsewhere: each is asked once, a lender's word stands, and nothing grows without bound."""

from __future__ import annotations

from lattica.mesh.identity import PeerId
from lattica.node.holders import CID_BYTES_MAX, HOLDERS_MAX, TRIED_MAX, Holders

OBJECT = b"object 16 bytes!"
ME, LENDER, *OTHERS = (PeerId(bytes([number]) * 32) for number in range(64))


def all_asked(holders: Holders, dead: tuple[PeerId, ...] = ()) -> list[PeerId]:
    found = []
    while (peer := holders.next(OBJECT, lambda peer: peer not in dead)) is not None:
        found.append(peer)
    holders.validate()
    return found


def test_those_who_were_named_are_asked_once_in_their_order() -> None:
    holders = Holders()
    assert not all_asked(holders)
    holders.hinted(OBJECT, [OTHERS[0], LENDER, OTHERS[1], ME, OTHERS[2]], b"", [ME, LENDER])
    assert holders.asking(OBJECT)
    assert all_asked(holders, dead=(OTHERS[1],)) == [OTHERS[0], OTHERS[2]]
    assert not holders.asking(OBJECT) and not holders.of(OBJECT), "a new hint begins anew"
    holders.hinted(OBJECT, [OTHERS[0]], b"", [ME, LENDER])
    assert all_asked(holders) == [OTHERS[0]]


def test_who_was_named_names_others_and_not_for_ever() -> None:
    holders, asked = Holders(), []
    holders.hinted(OBJECT, OTHERS[:2], b"", [ME, LENDER])
    while (peer := holders.next(OBJECT, lambda _: True)) is not None:
        asked.append(peer)
        at = OTHERS.index(peer)
        holders.hinted(OBJECT, [*OTHERS[at : at + 3], *OTHERS[:20]], b"", [])
        holders.validate()
    assert len(set(asked)) == len(asked) and HOLDERS_MAX < len(asked) <= TRIED_MAX


def test_a_borrowers_word_of_the_content_does_not_replace_a_lenders() -> None:
    holders = Holders()
    holders.learned(OBJECT, b"from a borrower", vouched=False)
    assert holders.cid(OBJECT) == b"from a borrower" and holders.cid(OBJECT, vouched=True) == b""
    holders.hinted(OBJECT, [], b"from the lender", [])
    holders.learned(OBJECT, b"from a borrower", vouched=False)
    assert holders.cid(OBJECT) == holders.cid(OBJECT, vouched=True) == b"from the lender"
    holders.learned(OBJECT, b"x" * (CID_BYTES_MAX + 1), vouched=True)
    assert holders.cid(OBJECT) == b"from the lender"
    holders.doubt(OBJECT)
    assert holders.cid(OBJECT) == b""
    holders.validate()


def test_the_oldest_is_forgotten_when_there_are_too_many() -> None:
    holders = Holders(known_max=3)
    for number in range(10):
        holders.learned(bytes([number]), b"cid", vouched=True)
        holders.validate()
    assert [holders.cid(bytes([number])) for number in range(6, 10)] == [b"", b"cid", b"cid", b"cid"]
    holders.forget(bytes([9]))
    assert holders.cid(bytes([9])) == b"" and not holders.of(bytes([9]))
