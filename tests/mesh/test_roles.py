"""Roles as words and as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError
from lattica.mesh.roles import EVERYTHING, MEMBER, NOTHING, Role, parse_roles, roles_of, roles_text

some_roles = st.integers(1, EVERYTHING.value).map(Role)


@given(some_roles)
def test_roles_are_read_back_from_their_words(roles: Role) -> None:
    assert parse_roles(roles_text(roles)) == roles
    assert parse_roles(f" {roles_text(roles).upper().replace(',', ' , ')},") == roles


def test_the_words_and_numbers_are_these() -> None:
    """Golden: the numbers stand in certificates, the words in people's scripts."""
    assert {role.name: role.value for role in Role} == {
        "EXECUTE": 1,
        "SUBMIT": 2,
        "STORE": 4,
        "RELAY": 8,
        "ADMIN": 16,
    }
    assert roles_text(EVERYTHING) == "execute,submit,store,relay,admin"
    assert roles_text(NOTHING) == "none"


def test_all_means_every_role_and_a_member_is_no_admin() -> None:
    assert parse_roles("all") == EVERYTHING == MEMBER | Role.ADMIN
    assert Role.ADMIN not in MEMBER


@pytest.mark.parametrize(("text", "named"), [("execute,boss,chef", "boss, chef"), ("", "no role"), (" , ", "no role")])
def test_unknown_roles_are_named_with_those_that_there_are(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){named}.*execute,submit,store,relay,admin"):
        parse_roles(text)


@given(st.integers(0, 2**32 - 1))
def test_roles_of_a_later_release_are_left_out(number: int) -> None:
    assert roles_of(number).value == number & 31
