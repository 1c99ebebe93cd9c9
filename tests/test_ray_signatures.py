"""Every public name of Ray Core, parameter by parameter, against lattica's: what differs is in a table with a reason.

What Ray has was written down by `lattica/testing/signatures.py` in Ray's own Python. The table is in
docs/ray-differences.md: change a row there when a difference comes or goes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lattica.testing.signatures import differences, facts

ROOT = Path(__file__).parent.parent
TABLE, LIMITS = ROOT / "docs" / "ray-differences.md", ROOT / "docs" / "limits.md"
RAY: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "ray-2.60-signatures.json").read_text())
ROW = re.compile(r"^\| (`.+`) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
NAME = re.compile(r"`([^`]+)`")


def listed() -> dict[str, tuple[str, str]]:
    """name -> (how it differs, why), of all rows."""
    found: dict[str, tuple[str, str]] = {}
    for names, how, why in ROW.findall(TABLE.read_text()):
        for name in NAME.findall(names):
            assert name not in found, f"{name} is in two rows"
            found[name] = how.strip(), why.strip()
    return found


@pytest.fixture(scope="module")
def real() -> dict[str, str]:
    pytest.importorskip("joblib")
    pytest.importorskip("dask")
    return differences(RAY["names"])


def test_each_difference_from_ray_has_a_row_with_a_reason(real: dict[str, str]) -> None:
    rows = listed()
    new = [f"| `{name}` | {how} | why? |" for name, how in real.items() if rows.get(name, ("",))[0] != how]
    assert not new, "docs/ray-differences.md has no such rows:\n" + "\n".join(new)
    assert all(len(why) > 5 for _, why in rows.values())


def test_no_row_tells_of_a_difference_that_is_none(real: dict[str, str]) -> None:
    old = [name for name, (how, _) in listed().items() if real.get(name) != how]
    assert not old, f"these differ no longer, or otherwise, than docs/ray-differences.md says: {old}"


def test_the_number_of_differences_is_said(real: dict[str, str]) -> None:
    added = sum(how == "added" for how in real.values())
    said = f"**{len(real)} differences in {len(RAY['names'])} names**, of which {added} are additions"
    assert said in TABLE.read_text(), f"docs/ray-differences.md should say: {said}"
    linked = f"[{len(real)} differences in {len(RAY['names'])} names](ray-differences.md)"
    assert linked in LIMITS.read_text(), f"docs/limits.md should say: {linked}"


def test_the_table_is_of_the_release_whose_names_we_have() -> None:
    from lattica.compat import ray_names

    assert RAY["ray"] == ray_names.RELEASE and f"Ray {RAY['ray']}" in TABLE.read_text()


def look(ours: Any) -> Any:
    return lambda _: None if ours is None else facts(ours)


def theirs(a: int, b: str = "x", *, c: bool = True) -> None: ...


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (theirs, {}),
        (None, {"ray.f": "missing"}),
        (int, {"ray.f": "a class instead of a function"}),
        (lambda a, b="x", *, c=True, d=1: None, {"ray.f(d)": "added"}),
        (lambda a, b="x", **more: None, {}),
        (lambda a, b="x": None, {"ray.f(c)": "missing"}),
        (lambda a, b="y", *, c=True: None, {"ray.f(b)": "default 'y' instead of default 'x'"}),
        (lambda a, b, *, c=True: None, {"ray.f(b)": "no default instead of default 'x'"}),
        (lambda b="x", a=1, *, c=True: None, {"ray.f(a)": "elsewhere", "ray.f(b)": "elsewhere"}),
        (lambda a, *, b="x", c=True: None, {"ray.f(b)": "elsewhere"}),
    ],
)
def test_a_difference_is_found_where_a_call_of_rays_would_mean_something_else(
    ours: Any, expected: dict[str, str]
) -> None:
    assert differences({"ray.f": facts(theirs)}, look(ours)) == expected


def test_an_error_must_be_caught_by_what_caught_it_in_ray() -> None:
    class Wide(OSError): ...

    assert differences({"ray.E": facts(Wide)}, look(KeyError)) == {"ray.E(OSError)": "not caught by it"}
    assert differences({"ray.E": facts(Wide)}, look(BlockingIOError)) == {}


def test_a_class_that_is_missing_stands_for_its_methods() -> None:
    table = {"ray.C": {"kind": "class", "parameters": []}, "ray.C.m": {"kind": "property"}}
    assert differences(table, look(None)) == {"ray.C": "missing"}
