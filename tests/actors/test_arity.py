"""Whether arguments fit: the quick answer is that of `inspect.Signature.bind`, and the words are its own."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.actors.arity import ANY, Arities, Arity, of_function


def f0() -> None: ...
def f1(a: int) -> None: ...
def f2(a: int, b: int = 1) -> None: ...
def f3(a: int, /, b: int, *, c: int) -> None: ...
def f4(a: int = 0, *more: int, c: int = 1) -> None: ...
def f5(a: int, b: int = 2, **named: int) -> None: ...
def f6(a: int, /, **named: int) -> None: ...
def f7(*, c: int, d: int = 1) -> None: ...
def f8(a: int, b: int = 1, *, c: int) -> None: ...


def accepts(arity: Arity, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """As callers ask."""
    try:
        if kwargs or not arity.least <= len(args) <= arity.most:
            arity.check(args, kwargs)
    except TypeError:
        return False
    return True


@given(
    st.sampled_from([f0, f1, f2, f3, f4, f5, f6, f7, f8]),
    st.integers(0, 4),
    st.dictionaries(st.sampled_from("abcde"), st.just(1)),
)
def test_what_fits_is_what_binds(function: Any, count: int, kwargs: dict[str, int]) -> None:
    args = tuple(range(count))
    try:
        inspect.signature(function).bind(*args, **kwargs)
        binds = True
    except TypeError:
        binds = False
    assert accepts(of_function(function, "f"), args, kwargs) == binds


def test_the_words_are_those_of_python_and_name_the_function() -> None:
    with pytest.raises(TypeError, match=r"^f1\.remote\(\): missing a required argument: 'a'$"):
        of_function(f1, "f1").check((), {})


class Base:
    def __init__(self, a: int, b: int = 1) -> None: ...
    def method(self, x: int) -> None: ...
    @classmethod
    def of(cls, x: int) -> None: ...
    @staticmethod
    def alone(x: int) -> None: ...


class Derived(Base):
    constant = 3


@pytest.mark.parametrize("name", ["method", "of", "alone"])
def test_methods_of_each_kind_take_one_argument(name: str) -> None:
    arity = Arities(Derived).of(name)
    assert [accepts(arity, args, {}) for args in ((), (1,), (1, 2))] == [False, True, False]


def test_a_constructor_is_that_of_the_class() -> None:
    arities = Arities(Derived)
    assert [accepts(arities.constructor, (1,) * count, {}) for count in range(4)] == [False, True, True, False]
    assert accepts(arities.constructor, (), {"b": 2, "a": 1}) and not accepts(arities.constructor, (1,), {"c": 1})
    assert accepts(Arities(type("Empty", (), {})).constructor, (), {})


def test_what_nobody_knows_the_signature_of_takes_anything() -> None:
    def inject(function: Any) -> Any:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return function(0, *args, **kwargs)

        return wrapped

    assert accepts(of_function(inject(f1), "f"), (), {}), "its decorator gives it what is missing"
    assert Arities(Derived).of("constant") is Arities(Derived).of("__ray_ready__") is ANY
    assert accepts(ANY, (1, 2), {"x": 1})
