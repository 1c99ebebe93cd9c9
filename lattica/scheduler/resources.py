"""What a machine has, what a task asks for, and what is left: amounts without rounding, GPUs by index.

    request = parse_request(num_cpus=1, num_gpus=0.5)
    pool = ResourcePool(ResourceSet.of({"CPU": 8, "GPU": 2}))
    if allocation := pool.acquire(request):                     # None: does not fit now
        use(allocation.gpus)                                    # (0,)
        pool.release(allocation.only("CPU"))                    # its worker blocks: others may use its CPU
        pool.force_acquire(allocation.resources.only("CPU"))    # it runs again, and may overdraw the pool
        pool.release(allocation)

Amounts are integers of 1/10,000 (Ray's unit), so that tenths add up and subtract without a trace. A request is rounded
down to them: three tasks of `num_gpus=1/3` share one GPU. Names are "CPU", "GPU", "memory" (bytes) and whatever else a
node was started with. Pure; `validate()` asserts that nothing was lost or made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lattica.errors import ConfigError

UNITS = 10_000  # per whole; Ray's, so that the same requests fit
SMALLEST = 1 / UNITS
CPU, GPU, MEMORY = "CPU", "GPU", "memory"
KEYWORDS = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory", "object_store_memory": "init(object_store_memory=...)"}
NAME_MAX_CHARS = 256  # names travel with every lease request and stand in tables
NAMES_MAX = 64  # resources of one request or node; more is a program's mistake


class ResourceSet(Mapping[str, float]):
    """Amounts by name; immutable, hashable, equal by value. Reads as whole units (`{"CPU": 0.5}`), zeros left out.

    Two tasks whose sets are equal are of one scheduling class as far as resources go.
    """

    __slots__ = ("_hash", "units")

    units: Mapping[str, int]  # in 1/10,000; each > 0, sorted by name; treat as read-only

    def __init__(self, units: Mapping[str, int]) -> None:
        self.units = {name: units[name] for name in sorted(units) if units[name]}
        self._hash: int | None = None
        assert not self.units or min(self.units.values()) > 0, f"negative amounts: {self.units}"

    @classmethod
    def _sorted(cls, units: Mapping[str, int]) -> ResourceSet:
        """From what is known to be sorted and positive: the book of leases takes parts of sets all the time."""
        made = cls.__new__(cls)
        made.units, made._hash = units, None
        return made

    @classmethod
    def of(cls, amounts: Mapping[str, float]) -> ResourceSet:
        """From whole units, as users and messages give them. Raises ConfigError that says which amount and why."""
        if len(amounts) > NAMES_MAX:
            raise ConfigError(f"{len(amounts)} resources in one request; at most {NAMES_MAX} are allowed")
        return cls({name: _to_units(name, amount) for name, amount in amounts.items()})

    def only(self, *names: str) -> ResourceSet:
        return self._sorted({name: amount for name, amount in self.units.items() if name in names})

    def without(self, *names: str) -> ResourceSet:
        return self._sorted({name: amount for name, amount in self.units.items() if name not in names})

    def to_dict(self) -> dict[str, float]:
        """Whole units, for messages and views; whole amounts as int, as a reader expects `{"CPU": 4}`."""
        return {name: self[name] for name in self.units}

    def __getitem__(self, name: str) -> float:
        amount = self.units[name]
        return amount // UNITS if amount % UNITS == 0 else amount / UNITS

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(tuple(self.units.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self.units == other.units if isinstance(other, ResourceSet) else NotImplemented

    def __add__(self, other: ResourceSet) -> ResourceSet:
        return ResourceSet(_sum(self.units, other.units, 1))

    def __sub__(self, other: ResourceSet) -> ResourceSet:
        """What is left of this; asserts that `other` is inside it."""
        return ResourceSet(_sum(self.units, other.units, -1))

    def __reduce__(self) -> tuple[type[ResourceSet], tuple[Mapping[str, int]]]:
        return ResourceSet, (self.units,)  # without the hash, which another process computes otherwise

    def __repr__(self) -> str:
        return f"<{', '.join(f'{amount:g} {name}' for name, amount in self.items()) or 'no resources'}>"


def _sum(one: Mapping[str, int], other: Mapping[str, int], sign: int) -> dict[str, int]:
    return {name: one.get(name, 0) + sign * other.get(name, 0) for name in one.keys() | other.keys()}


def _to_units(name: object, amount: object) -> int:
    if not isinstance(name, str) or not name or len(name) > NAME_MAX_CHARS:
        raise ConfigError(f"{name!r:.80} is no name of a resource", do_next="use a short, non-empty string")
    try:
        if isinstance(amount, str | bytes):
            raise TypeError
        value = float(amount)  # type: ignore[arg-type]  # whatever it is: numpy's scalars count like Python's
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name}={amount!r:.80} is no number", do_next=f"pass a number of {name}") from None
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"{name}={value:g} is not an amount", do_next=f"ask for 0 or more {name}")
    # Rounded first: 0.0003 * 10,000 is 2.9999999999999996 in binary.
    units = amount * UNITS if isinstance(amount, int) else math.floor(round(value * UNITS, 3))
    if value > 0 and units == 0:
        raise ConfigError(f"{name}={value:g} is less than the smallest amount", do_next=f"ask for at least {SMALLEST}")
    if name == GPU and units > UNITS and units % UNITS:
        raise ConfigError(
            f"num_gpus={value:g}: more than one GPU must be a whole number, since only one can be shared at a time",
            do_next=f"ask for {math.floor(value)} or {math.ceil(value)}, or for a fraction below 1",
        )
    return int(units)


def parse_request(
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    resources: Mapping[str, float] | None = None,
) -> ResourceSet:
    """What a task, an actor or a node was given by its user. `memory` in bytes; None asks for nothing.

    Raises ConfigError; one of them where `resources` names what has a keyword of its own.
    """
    for name in resources or ():
        if name in KEYWORDS:
            raise ConfigError(
                f"resources={{{name!r}: ...}} is not accepted", do_next=f"say it by the keyword {KEYWORDS[name]}"
            )
    named = {CPU: num_cpus, GPU: num_gpus, MEMORY: None if memory is None else int(memory)}
    given = {name: amount for name, amount in named.items() if amount is not None}
    return ResourceSet.of({**(resources or {}), **given})


@dataclass(frozen=True, slots=True)
class Allocation:
    """What `acquire` gave: the amounts, and the shares of GPUs by index (1/10,000 each). May go back in parts."""

    resources: ResourceSet
    gpu_shares: tuple[tuple[int, int], ...] = ()

    @property
    def gpus(self) -> tuple[int, ...]:
        """The indices, for `CUDA_VISIBLE_DEVICES`."""
        return tuple(index for index, _ in self.gpu_shares)

    def only(self, *names: str) -> Allocation:
        return Allocation(self.resources.only(*names), self.gpu_shares if GPU in names else ())

    def without(self, *names: str) -> Allocation:
        return Allocation(self.resources.without(*names), () if GPU in names else self.gpu_shares)


class ResourcePool:
    """The free amounts of one machine, and which GPUs they are. Only CPU may be overdrawn, by `force_acquire`."""

    def __init__(self, total: ResourceSet) -> None:
        self.total = total
        self._free = dict(total.units)
        self._given: dict[str, int] = dict.fromkeys(total.units, 0)
        whole, rest = divmod(total.units.get(GPU, 0), UNITS)
        self._gpu_sizes = [UNITS] * whole + ([rest] if rest else [])
        self._gpu_free = list(self._gpu_sizes)

    def missing(self, request: ResourceSet) -> str:
        """Words for why this can never be had here: `4 GPU (of 2), 1 tpu (of 0)`; "" if it can."""
        lacking = [name for name, amount in request.units.items() if self.total.units.get(name, 0) < amount]
        return ", ".join(f"{request[name]:g} {name} (of {self.total.get(name, 0):g})" for name in lacking)

    def feasible(self, request: ResourceSet) -> bool:
        """Whether it would fit if nothing else ran."""
        return not self.missing(request)

    def fits(self, request: ResourceSet) -> bool:
        """Whether `acquire` would succeed now."""
        for name, amount in request.units.items():
            if self._free.get(name, 0) < amount:
                return False
        return GPU not in request.units or _pick_gpus(self._gpu_free, request.units[GPU]) is not None

    def acquire(self, request: ResourceSet) -> Allocation | None:
        """Take it all, or nothing. A share of a GPU comes from the fullest one that has room: others stay whole."""
        if not self.fits(request):
            return None
        shares = _pick_gpus(self._gpu_free, request.units.get(GPU, 0))
        allocation = Allocation(request, tuple(shares or ()))
        self._move(allocation, -1)
        return allocation

    def force_acquire(self, request: ResourceSet) -> Allocation:
        """Take CPUs whether they are free or not: a worker that had blocked runs again.

        The pool may be overdrawn by it; until the debt is paid nothing that asks for CPU fits.
        """
        assert set(request) <= {CPU}, f"only CPU may be overdrawn, not {request}"
        assert self.feasible(request), f"{request} was never acquired here"
        allocation = Allocation(request)
        self._move(allocation, -1)
        return allocation

    def release(self, allocation: Allocation) -> None:
        """Give back what `acquire` or `force_acquire` gave, or a part of it."""
        self._move(allocation, +1)

    @property
    def available(self) -> dict[str, float]:
        """Free amounts in whole units for views; an overdrawn one shows as 0."""
        return {name: ResourceSet({name: max(0, free)}).get(name, 0) for name, free in self._free.items()}

    @property
    def taken(self) -> dict[str, int]:
        """What is not free, in 1/10,000, for those that know the totals."""
        return {name: total - self._free[name] for name, total in self.total.units.items() if total > self._free[name]}

    @property
    def overdrawn(self) -> bool:
        return any(free < 0 for free in self._free.values())

    def validate(self) -> None:
        for name, total in self.total.units.items():
            assert self._free[name] + self._given[name] == total, f"{name}: free and given do not add up to the total"
            assert self._given[name] >= 0, f"more {name} came back than was given"
            assert self._free[name] >= 0 or name == CPU, f"{name} is overdrawn"
        assert self._free.keys() == self.total.units.keys(), "a resource came from nowhere"
        assert all(0 <= free <= size for free, size in zip(self._gpu_free, self._gpu_sizes)), "a GPU is over-shared"
        assert sum(self._gpu_free) == self._free.get(GPU, 0), "the GPUs' shares differ from the amount of GPU"

    def __repr__(self) -> str:
        amounts = ", ".join(f"{free / UNITS:g} of {self.total[name]:g} {name}" for name, free in self._free.items())
        return f"<ResourcePool: {amounts} free>"

    def _move(self, allocation: Allocation, sign: int) -> None:
        for name, amount in allocation.resources.units.items():
            self._free[name] += sign * amount
            self._given[name] -= sign * amount
            assert self._given[name] >= 0, f"{allocation} came back twice, or is another pool's"
        for index, share in allocation.gpu_shares:
            self._gpu_free[index] += sign * share


def _pick_gpus(free: list[int], wanted: int) -> list[tuple[int, int]] | None:
    """(index, share) of the GPUs that a request gets, from the free share of each; None if they do not allow it."""
    if not wanted:
        return []
    if wanted < UNITS:
        fullest_first = sorted((room, index) for index, room in enumerate(free) if room >= wanted)
        return [(fullest_first[0][1], wanted)] if fullest_first else None
    whole = [(index, UNITS) for index, room in enumerate(free) if room == UNITS][: wanted // UNITS]
    return whole if len(whole) * UNITS == wanted else None
