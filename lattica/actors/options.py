"""Options of tasks and actors: Ray's names and defaults, checked when they are given, not when they fail."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from lattica.actors.refs import RETURNS_MAX
from lattica.actors.streams import to_wire
from lattica.errors import ConfigError
from lattica.errors.base import one_of
from lattica.scheduler.resources import NAME_MAX_CHARS, parse_request

if TYPE_CHECKING:
    from lattica.scheduler.given import DemandGiven, StrategyGiven

COMMON = {"num_cpus", "num_gpus", "memory", "resources", "name", "runtime_env", "scheduling_strategy", "label_selector",
          "accelerator_type", "object_store_memory", "_metadata", "enable_task_events", "_labels",
          "placement_group", "placement_group_bundle_index", "placement_group_capture_child_tasks", "fallback_strategy",
          "trust", "results", "site"}  # fmt: skip
TASK = COMMON | {"num_returns", "max_retries", "retry_exceptions", "max_calls", "_generator_backpressure_num_objects",
                 "_num_objects_per_yield"}  # fmt: skip
ACTOR = COMMON | {"max_restarts", "max_task_retries", "max_concurrency", "max_pending_calls", "namespace", "lifetime",
                  "get_if_exists", "concurrency_groups", "allow_out_of_order_execution", "enable_tensor_transport",
                  "_actor_generator_backpressure_num_objects", "partition", "checkpoint_every"}  # fmt: skip
METHOD = {"num_returns", "max_task_retries", "retry_exceptions", "concurrency_group", "enable_task_events",
          "tensor_transport", "_generator_backpressure_num_objects", "_num_objects_per_yield"}  # fmt: skip
CALL = METHOD | {"name", "_labels"}
"""Of a method, for the calls that are made through `.options(…)`."""
DECLARED = ("concurrency_groups", "max_calls")
"""Said where the class or function is made remote, and not in `.options(…)`: they are its nature, not one use's."""
LATER = {
    "accelerator_type",
    "enable_tensor_transport",
    "fallback_strategy",
    "tensor_transport",
    "_actor_generator_backpressure_num_objects",
}
"""Accepted by Ray, not yet by us: refused with a word rather than ignored, unless they ask for nothing."""

RESULTS = ("any", "data")
"""What a submitter takes from nodes: anything that pickle makes, or only numbers, strings, containers and arrays."""
PARTITIONS = ("consistent", "available")
"""What becomes of a detached actor while the mesh is cut: the larger side has it, or each side may have one."""
PLACE = ("scheduling_strategy", "label_selector", "site", "trust")
GENERATORS = ("streaming", "dynamic")
"""As `num_returns`: refs one by one while it runs, or all of them as the value of one ref."""
GROUP = ("placement_group", "placement_group_bundle_index", "placement_group_capture_child_tasks")
"""Ray's older words for a `PlacementGroupSchedulingStrategy`."""
TASK_RETRIES = 3
"""Ray's default: a task is pure unless its author says otherwise."""


def check(options: Mapping[str, Any], allowed: set[str], what: str) -> dict[str, Any]:
    """The options, if they are all known and sensible. Raises ConfigError."""
    for name, value in options.items():
        if name not in allowed:
            raise ConfigError(
                f"{what} has no option {name!r}",
                do_next=one_of(str(name), sorted(n for n in allowed if n[0] != "_"), "it takes"),
            )
        if name in LATER and value not in (None, False, -1, 0, [], ()):
            raise ConfigError(
                f"{name} is not supported by this release of lattica", do_next=f"leave {name} out; see docs/limits.md"
            )
        _check_one(name, value)
    if any(name in options for name in GROUP):
        options = _in_group(options)
    if any(options.get(name) is not None for name in ("num_cpus", "num_gpus", "memory", "resources")):
        resources(options, 0)
    if any(options.get(name) is not None for name in ("scheduling_strategy", "label_selector", "trust")):
        demand(options, 0).check()  # each alone makes sense: do they together?
    if (environment := options.get("runtime_env")) is not None:
        from lattica.scheduler import environments

        return {**options, "runtime_env": environments.plain(environment)}
    return dict(options)


def _in_group(options: Mapping[str, Any]) -> dict[str, Any]:
    """With `scheduling_strategy` in place of GROUP. "default" as a group: that of the caller, as without these words;
    None: no group, whatever the caller is in. Raises ConfigError."""
    from lattica.scheduler.given import ANY_BUNDLE, StrategyGiven, check_strategy

    rest = {name: value for name, value in options.items() if name not in GROUP}
    group, index = options.get("placement_group", "default"), options.get("placement_group_bundle_index", ANY_BUNDLE)
    if group == "default":
        if index != ANY_BUNDLE:
            raise ConfigError(f"placement_group_bundle_index={index!r:.80} needs a placement_group")
        return rest
    if rest.get("scheduling_strategy") is not None:
        raise ConfigError(
            "placement_group and scheduling_strategy are two words for the same", do_next="leave placement_group out"
        )
    if group is None or getattr(group, "is_empty", False):
        return rest | {"scheduling_strategy": StrategyGiven()}
    count, owner = getattr(group, "bundle_count", None), getattr(group, "_owner", None)
    if not isinstance(count, int) or not isinstance(owner, bytes):
        raise ConfigError(f"placement_group={group!r:.80} is none", do_next="pass what placement_group() returned")
    if not _is_count(index, ANY_BUNDLE, count):
        raise ConfigError(f"placement_group_bundle_index={index!r:.80}, but {group!r:.80} has {count} bundles")
    captures = bool(options.get("placement_group_capture_child_tasks"))
    given = StrategyGiven(group=bytes(group.id), bundle=index, captures=captures, owner=owner)
    check_strategy(given)
    return rest | {"scheduling_strategy": given}


def check_more(options: Mapping[str, Any], allowed: set[str], what: str) -> dict[str, Any]:
    """The same, of what `.options(…)` was given."""
    for name in DECLARED:
        if options.get(name) is not None:
            raise ConfigError(f"{name} cannot be given in .options()", do_next=f"say @lattica.remote({name}=…)")
    return check(options, allowed, what)


def _check_one(name: str, value: Any) -> None:
    if value is None:  # Ray's word for "the default"
        return
    if name == "num_returns" and value not in GENERATORS and not _is_count(value, 0, RETURNS_MAX):
        raise ConfigError(
            f"num_returns={value!r} must be a whole number, at least 0 and below {RETURNS_MAX}; of a generator also "
            '"streaming" or "dynamic"'
        )
    if name == "_num_objects_per_yield" and value != 1:
        raise ConfigError(f"{name}={value!r} must be 1: what is yielded is one value")
    if name == "_generator_backpressure_num_objects" and (value == 0 or not _is_count(value, -RETURNS_MAX)):
        raise ConfigError(
            f"{name}={value!r} must be a whole number above 0: how many items may wait to be taken (-1: any number)"
        )
    counted = name in ("max_retries", "max_restarts", "max_task_retries", "max_pending_calls")
    if counted and not _is_count(value, -1):
        raise ConfigError(f"{name}={value!r} must be a whole number of at least -1 (-1: without limit)")
    if name == "max_calls" and not _is_count(value, 0, 1 << 32):
        raise ConfigError(f"max_calls={value!r:.80} must be a whole number (0: without limit)")
    if name == "max_concurrency" and not _is_count(value, 1):
        raise ConfigError(f"max_concurrency={value!r} must be a whole number of at least 1")
    if name == "lifetime" and value not in ("detached", "non_detached"):
        raise ConfigError(f"lifetime={value!r} must be None or 'detached'")
    if name == "checkpoint_every" and not _is_seconds(value):
        raise ConfigError(f"checkpoint_every={value!r:.80} must be a number of seconds, at least 0")
    if name == "partition" and value not in PARTITIONS:
        raise ConfigError(f"partition={value!r:.80} must be {' or '.join(map(repr, PARTITIONS))}")
    if name == "concurrency_groups" and not _are_groups(value):
        raise ConfigError(
            f"concurrency_groups={value!r:.80} must be a dict of names and how many calls of each run at once",
            do_next='say it like {"io": 2, "compute": 4}',
        )
    if name == "concurrency_group" and not isinstance(value, str):
        raise ConfigError(f"concurrency_group={value!r:.80} must be a name out of the class's concurrency_groups")
    if name == "enable_task_events" and not isinstance(value, bool):
        raise ConfigError(f"enable_task_events={value!r:.80} must be True or False")
    if name in ("name", "namespace") and (not isinstance(value, str) or not value):
        raise ConfigError(f"{name}={value!r} must be a string that is not empty")
    if name == "memory" and not (isinstance(value, int) or (isinstance(value, Real) and math.isfinite(value))):
        raise ConfigError(f"memory={value!r:.80} must be a number of bytes")
    if name == "resources" and not isinstance(value, Mapping):
        raise ConfigError(f"resources={value!r:.80} must be a dict of names and amounts")
    if name == "results" and not (isinstance(value, str) and value in RESULTS):
        raise ConfigError(f"results={value!r:.80} must be {' or '.join(map(repr, RESULTS))}")
    if name == "site" and (not isinstance(value, str) or not 0 < len(value) <= NAME_MAX_CHARS):
        raise ConfigError(f"site={value!r:.80} must be a string that is not empty", do_next="see `lattica peers`")
    if name == "scheduling_strategy":
        strategy(value)
    if name == "label_selector":
        _check_selector(value)
    if name == "trust":
        trusted(value)
    if name == "retry_exceptions" and not isinstance(value, bool) and not _are_exceptions(value):
        raise ConfigError(f"retry_exceptions={value!r} must be True, False or a list of exception classes")


def _is_count(value: Any, least: int, below: int = 1 << 63) -> bool:  # 63 bits: counts travel
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < below


def _are_groups(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and 0 < len(name) <= NAME_MAX_CHARS and _is_count(most, 1) for name, most in value.items()
    )


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _are_exceptions(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    )


def resources(options: Mapping[str, Any], default_cpus: float) -> dict[str, float]:
    """What one task or actor takes, in units: {"CPU": 1.0, ...}; nothing that is zero. Raises ConfigError."""
    cpus = options.get("num_cpus")
    return parse_request(
        num_cpus=default_cpus if cpus is None else cpus,
        num_gpus=options.get("num_gpus"),
        memory=options.get("memory"),
        resources=options.get("resources"),
    ).to_dict()


def demand(options: Mapping[str, Any], default_cpus: float, python: str = "") -> DemandGiven:
    """What one task or actor needs of its node, by all its options; python: "3.11". Raises ConfigError."""
    from lattica.scheduler.given import DemandGiven

    return DemandGiven(
        resources(options, default_cpus),
        strategy(options.get("scheduling_strategy")),
        dict(options.get("label_selector") or {}),
        options.get("site") or "",
        trusted(options.get("trust")),
        python=python,
    )


def where(options: Mapping[str, Any], default_cpus: float, within: bytes = b"") -> bytes:
    """What the options say of the place, for the node; empty if they say nothing. within: the bundle that the caller
    runs in. Raises ConfigError."""
    if within:
        options = {**options, "scheduling_strategy": _captured(options.get("scheduling_strategy"), within)}
    if all(options.get(name) in (None, "DEFAULT", {}, ()) for name in PLACE):
        return b""
    from lattica.scheduler.given import encode

    return encode(demand(options, default_cpus))


def _captured(value: Any, within: bytes) -> Any:
    """A strategy, in a caller whose group may take what it calls: that is said with no strategy, and goes on down."""
    from msgspec.structs import replace

    from lattica.scheduler.given import ANY_BUNDLE, decode_within

    own = decode_within(within)
    if not own.captures:
        return value
    if value is None:
        return replace(own, bundle=ANY_BUNDLE)
    if getattr(value, "placement_group_capture_child_tasks", False) is None and value.placement_group is not None:
        return replace(value.to_wire(), captures=True)
    return value


def strategy(value: Any) -> StrategyGiven:
    """`scheduling_strategy` as nodes read it. Raises ConfigError."""
    from lattica.scheduler.given import DEFAULT, SPREAD, StrategyGiven

    if value is None:
        return StrategyGiven()
    if isinstance(value, StrategyGiven):  # of the caller's own group
        return value
    if isinstance(value, str) and value in (DEFAULT, SPREAD):
        return StrategyGiven(spread=value == SPREAD)
    given = value.to_wire() if callable(getattr(value, "to_wire", None)) else None
    if not isinstance(given, StrategyGiven):
        raise ConfigError(
            f"scheduling_strategy={value!r:.80} is none",
            do_next='say "DEFAULT" or "SPREAD", or use one of lattica.util.scheduling_strategies',
        )
    return given


def trusted(value: Any) -> tuple[bytes, ...]:
    """`trust` as nodes read it: ids of peers and issuers; none for every member. Raises ConfigError."""
    if value is None:
        return ()
    from lattica.scheduler.given import TRUST_MAX, read_trusted

    named = [value] if isinstance(value, str) else value
    if not isinstance(named, list | tuple | set | frozenset) or not 0 < len(named) <= TRUST_MAX:
        raise ConfigError(
            f"trust={value!r:.80} must be one to {TRUST_MAX} ids of peers and issuers",
            do_next="leave it out to trust every member of the mesh that may execute",
        )
    return tuple(sorted({read_trusted(one) for one in named}))


def _check_selector(value: Any) -> None:
    from lattica.scheduler import labels

    if not isinstance(value, Mapping):
        raise ConfigError(
            f"label_selector={value!r:.80} must be a dict of labels",
            do_next='say it like {"gpu": "in(A100, H100)", "market": "!spot"}',
        )
    labels.check(value)


def takes_data(options: Mapping[str, Any], otherwise: bool) -> bool:
    """Whether of what it makes data is taken and nothing else. otherwise: if the options do not say."""
    given = options.get("results")
    return otherwise if given is None else given == "data"


def num_returns(options: Mapping[str, Any], generates: bool | None = None) -> int:
    """How many refs a call answers with; below zero: a generator's, as of `streams.to_wire`. generates: whether it is a
    generator function; None: not known. Raises ConfigError."""
    given = options.get("num_returns")
    if given in GENERATORS and generates is False:
        raise ConfigError(f"num_returns={given!r} is for generator functions, those that use `yield`")
    if given in GENERATORS or (given is None and generates):
        return to_wire(max(0, options.get("_generator_backpressure_num_objects") or 0))
    return 1 if given is None else int(given)


def is_dynamic(options: Mapping[str, Any]) -> bool:
    """Whether all that a generator makes is to be the value of one ref."""
    return options.get("num_returns") == "dynamic"


def retry_exceptions(value: Any) -> bool | tuple[type[BaseException], ...]:
    """`retry_exceptions` as records keep it."""
    return value if isinstance(value, bool) else tuple(value or ())
