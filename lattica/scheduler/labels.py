"""Which labels a task wants of a node, in Ray's words; and two of ours, for whether a node has the label at all.

{"market": "spot", "region": "!eu-west", "gpu": "in(A100, H100)", "zone": "!in(a, b)", "disk": "*", "owner": "!*"}
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from lattica.errors import ConfigError

RULES_MAX = 64  # of one task
CHARS_MAX = 1024  # of one rule: they travel with each lease request
EXISTS, MISSING = "*", "!*"


def check(selector: Mapping[str, str]) -> None:
    """Raises ConfigError that says which rule cannot be read."""
    if len(selector) > RULES_MAX:
        raise ConfigError(f"{len(selector)} label rules in one request; at most {RULES_MAX} are allowed")
    for name, rule in selector.items():
        if not isinstance(name, str) or not isinstance(rule, str) or not name or len(rule) > CHARS_MAX:
            raise ConfigError(f"{name!r:.80}: {rule!r:.80} is no rule for a label", do_next='say {"name": "value"}')
        values, _ = _parse(rule)
        if not all(values) or "(" in "".join(values) or ")" in "".join(values):
            raise ConfigError(
                f"{name}: {rule!r:.80} is no rule for a label",
                do_next='say "value", "!value", "in(a, b)" or "!in(a, b)"',
            )


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels may run it. A label that is missing is none of the values."""
    for name, rule in selector.items():
        values, wanted = _parse(rule)
        found = labels.get(name) in values if rule not in (EXISTS, MISSING) else name in labels
        if found != wanted:
            return False
    return True


@lru_cache(1024)  # a rule is looked at for each node
def _parse(rule: str) -> tuple[tuple[str, ...], bool]:
    """The values, and whether the label shall be one of them."""
    wanted = not rule.startswith("!")
    rest = rule if wanted else rule[1:]
    if rest.startswith("in(") and rest.endswith(")"):
        return tuple(value.strip() for value in rest[3:-1].split(",")), wanted
    return (rest,), wanted
