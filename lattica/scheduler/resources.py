"""What a machine has, what a task asks for, and what is left: amounts without rounding, GPUs by index.

    request = parse_request(num_cpus=1, num_gpus=0.5)
    pool = ResourcePool(ResourceSet.of({"CPU": 8, "GPU": 2}))
    if allocation := pool.acquire(request):                     # None: does not fit now
        use(allocation.gpus)                                    # (0,)
        pool.release(allocation.cpus())                         # its worker blocks: others may use its CPU
        pool.force_acquire(allocation.resources.cpus())         # it runs again, and may overdraw the pool
        pool.release(allocation)

Amounts are integers of 1/10,000 (Ray's unit), so that tenths add up and subtract without a trace. A request is rounded
down to them: three tasks of `num_gpus=1/3` share one GPU. Names are "CPU", "GPU", "memory" (bytes) and whatever else a
node was started with. Pure; `validate()` asserts that nothing was lost or made.

A bundle of a placement group that is kept here is an allocation that becomes resources again (`grow`), under names that
nobody else can ask for: "pg/7/CPU" is the CPU of the machine's bundle number 7, "pg/7/" a place in it, which everything
takes that runs there. Numbers are never used twice, so what a dead bundle's workers give back is nobody's (`shrink`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lattica.errors import ConfigError

UNITS = 10_000  # per whole; Ray's, so that the same requests fit
SMALLEST = 1 / UNITS
MOST = 1 << 62  # whole: 4 EiB of memory; amounts travel in 64 bits
CPU, GPU, MEMORY = "CPU", "GPU", "memory"
KEYWORDS = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory", "object_store_memory": "init(object_store_memory=...)"}
NAME_MAX_CHARS = 256  # names travel with every lease request and stand in tables
NAMES_MAX = 64  # resources of one request or node; more is a program's mistake
BUNDLE = "pg/"  # begins the names of what belongs to a bundle; no user may begin one so
PLACES = 1 << 20  # of one bundle: what runs there at once, also of what asks for nothing


def in_bundle(bundle: int, name: str) -> str:
    """What a resource of a bundle is called; bundle: its number on this machine."""
    return f"{BUNDLE}{bundle}/{name}"


def plain(name: str) -> str:
    """A resource's name as its user said it; "" for a place in a bundle."""
    return name.split("/", 2)[2] if name.startswith(BUNDLE) else name


def _is_cpu(name: str) -> bool:
    return name == CPU or (name.startswith(BUNDLE) and plain(name) == CPU)


def _is_gpu(name: str) -> bool:
    return name == GPU or (name.startswith(BUNDLE) and plain(name) == GPU)


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

    def cpus(self) -> ResourceSet:
        """What a worker lends to others while it waits for them."""
        return self._sorted({name: amount for name, amount in self.units.items() if _is_cpu(name)})

    def but_cpus(self) -> ResourceSet:
        """What it keeps meanwhile."""
        return self._sorted({name: amount for name, amount in self.units.items() if not _is_cpu(name)})

    def in_bundle(self, bundle: int) -> ResourceSet:
        """The same out of a bundle, and a place there."""
        units = {in_bundle(bundle, name): amount for name, amount in self.units.items()}
        return ResourceSet({in_bundle(bundle, ""): 1, **units})

    def plain(self) -> ResourceSet:
        """As its user said it, in a bundle or not."""
        return ResourceSet({plain(name): amount for name, amount in self.units.items() if plain(name)})

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


def _whole(amount: float) -> float:
    """As a whole number, if it is a number at all."""
    try:
        return int(amount)
    except (TypeError, ValueError, OverflowError):  # `_to_units` says what is wrong
        return amount


def _to_units(name: object, amount: object) -> int:
    if not isinstance(name, str) or not name or len(name) > NAME_MAX_CHARS:
        raise ConfigError(f"{name!r:.80} is no name of a resource", do_next="use a short, non-empty string")
    if name.startswith(BUNDLE):
        raise ConfigError(f"{name!r:.80}: names that begin with {BUNDLE} are for placement groups", do_next="rename it")
    word = KEYWORDS[name] if name in (CPU, GPU) else name  # the user's
    try:
        if isinstance(amount, str | bytes):
            raise TypeError
        value = float(amount)  # type: ignore[arg-type]  # whatever it is: numpy's scalars count like Python's
    except (TypeError, ValueError, OverflowError):
        what = "bytes, such as 2 << 30" if name == MEMORY else name
        raise ConfigError(f"{word}={amount!r:.80} is no number", do_next=f"pass a number of {what}") from None
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"{word}={value:g} is not an amount", do_next=f"ask for 0 or more {name}")
    if value > MOST:
        raise ConfigError(f"{word}={value:g} is more than any machine has", do_next=f"ask for at most {MOST} {name}")
    # Rounded first: 0.0003 * 10,000 is 2.9999999999999996 in binary.
    units = amount * UNITS if isinstance(amount, int) else math.floor(round(value * UNITS, 3))
    if value > 0 and units == 0:
        raise ConfigError(f"{word}={value:g} is less than the smallest amount", do_next=f"ask for at least {SMALLEST}")
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
    named = {CPU: num_cpus, GPU: num_gpus, MEMORY: memory if memory is None else _whole(memory)}
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

    def cpus(self) -> Allocation:
        return Allocation(self.resources.cpus())

    def but_cpus(self) -> Allocation:
        return Allocation(self.resources.but_cpus(), self.gpu_shares)


class ResourcePool:
    """The free amounts of one machine, and which GPUs they are. Only CPU may be overdrawn, by `force_acquire`.

    total: of the machine; bundles are parts of it.
    """

    def __init__(self, total: ResourceSet) -> None:
        self.total = total
        self._sizes = dict(total.units)  # with what bundles have
        self._free = dict(total.units)
        self._given: dict[str, int] = dict.fromkeys(total.units, 0)
        whole, rest = divmod(total.units.get(GPU, 0), UNITS)
        self._cards = {GPU: dict(enumerate([UNITS] * whole + ([rest] if rest else [])))}  # free share of each, by index
        self._card_sizes = {GPU: dict(self._cards[GPU])}
        self._bundles: dict[int, ResourceSet] = {}

    def missing(self, request: ResourceSet) -> str:
        """Words for why this can never be had here: `4 GPU (of 2), 1 tpu (of 0)`; "" if it can."""
        sizes = self._sizes
        lacking = [name for name, amount in request.units.items() if sizes.get(name, 0) < amount]
        return ", ".join(
            f"{request[name]:g} {plain(name) or 'place'} (of {sizes.get(name, 0) / UNITS:g})" for name in lacking
        )

    def feasible(self, request: ResourceSet) -> bool:
        """Whether it would fit if nothing else ran."""
        return not self.missing(request)

    def fits(self, request: ResourceSet) -> bool:
        """Whether `acquire` would succeed now."""
        for name, amount in request.units.items():
            if self._free.get(name, 0) < amount:
                return False
        gpu = _gpu_of(request)
        return not gpu or _pick_gpus(self._cards[gpu], request.units[gpu]) is not None

    def lacking(self, request: ResourceSet) -> set[str]:
        """Names of what is not free of this now."""
        lacking = {name for name, amount in request.units.items() if self._free.get(name, 0) < amount}
        gpu = _gpu_of(request)
        if gpu and gpu not in lacking and _pick_gpus(self._cards[gpu], request.units[gpu]) is None:
            lacking.add(gpu)
        return lacking

    def acquire(self, request: ResourceSet) -> Allocation | None:
        """Take it all, or nothing. A share of a GPU comes from the fullest one that has room: others stay whole."""
        if not self.fits(request):
            return None
        gpu = _gpu_of(request)
        shares = _pick_gpus(self._cards[gpu], request.units[gpu]) if gpu else None
        allocation = Allocation(request, tuple(shares or ()))
        self._move(allocation, -1)
        return allocation

    def force_acquire(self, request: ResourceSet) -> Allocation:
        """Take CPUs whether they are free or not: a worker that had blocked runs again.

        The pool may be overdrawn by it; until the debt is paid nothing that asks for CPU fits.
        """
        assert all(map(_is_cpu, request)), f"only CPU may be overdrawn, not {request}"
        known = (name for name in request if name in self._sizes)
        assert self.feasible(request.only(*known)), f"{request} was never acquired here"
        allocation = Allocation(request)
        self._move(allocation, -1)
        return allocation

    def release(self, allocation: Allocation) -> None:
        """Give back what `acquire` or `force_acquire` gave, or a part of it."""
        self._move(allocation, +1)

    # -- bundles

    def grow(self, bundle: int, allocation: Allocation) -> None:
        """What `acquire` gave becomes the resources of this bundle. bundle: a number that none had before."""
        assert bundle not in self._bundles, f"bundle {bundle} is here already"
        self._bundles[bundle] = allocation.resources
        sizes = {in_bundle(bundle, name): units for name, units in allocation.resources.units.items()}
        for name, units in {**sizes, in_bundle(bundle, ""): PLACES}.items():
            self._sizes[name] = self._free[name] = units
            self._given[name] = 0
        if allocation.gpu_shares:
            cards = in_bundle(bundle, GPU)
            self._card_sizes[cards], self._cards[cards] = dict(allocation.gpu_shares), dict(allocation.gpu_shares)

    def shrink(self, bundle: int) -> None:
        """The bundle has ended: nothing fits there any more, and what its workers still have is gone with it."""
        resources = self._bundles.pop(bundle)
        for name in (in_bundle(bundle, ""), *(in_bundle(bundle, name) for name in resources)):
            del self._sizes[name], self._free[name], self._given[name]
        self._cards.pop(in_bundle(bundle, GPU), None)
        self._card_sizes.pop(in_bundle(bundle, GPU), None)

    def in_bundles(self, name: str) -> int:
        """How much of it belongs to bundles, in 1/10,000: others cannot wait for that."""
        return sum(resources.units.get(name, 0) for resources in self._bundles.values())

    def size(self, name: str) -> int:
        """How much there is of it, free or not, in 1/10,000; the name may be a bundle's."""
        return self._sizes.get(name, 0)

    # -- views

    @property
    def available(self) -> dict[str, float]:
        """Free amounts of the machine in whole units for views; an overdrawn one shows as 0."""
        free = self._free
        return {name: ResourceSet({name: max(0, free[name])}).get(name, 0) for name in self.total.units}

    @property
    def taken(self) -> dict[str, int]:
        """What is not free, in 1/10,000, for those that know the totals."""
        return {name: total - self._free[name] for name, total in self.total.units.items() if total > self._free[name]}

    @property
    def overdrawn(self) -> bool:
        return any(free < 0 for free in self._free.values())

    def validate(self) -> None:
        for name, size in self._sizes.items():
            assert self._free[name] + self._given[name] == size, f"{name}: free and given do not add up to the total"
            assert self._given[name] >= 0, f"more {name} came back than was given"
            assert self._free[name] >= 0 or _is_cpu(name), f"{name} is overdrawn"
        assert self._free.keys() == self._sizes.keys() == self._given.keys(), "a resource came from nowhere"
        for name in self.total.units:
            assert self._given[name] >= self.in_bundles(name), f"bundles have {name} that is free"
        for cards, sizes in self._card_sizes.items():
            free = self._cards[cards]
            assert free.keys() == sizes.keys(), "a GPU came from nowhere"
            assert all(0 <= free[index] <= size for index, size in sizes.items()), "a GPU is over-shared"
            assert sum(free.values()) == self._free.get(cards, 0), "the GPUs' shares differ from the amount of GPU"

    def __repr__(self) -> str:
        amounts = ", ".join(f"{self._free[name] / UNITS:g} of {self.total[name]:g} {name}" for name in self.total.units)
        return f"<ResourcePool: {amounts} free>"

    def _move(self, allocation: Allocation, sign: int) -> None:
        for name, amount in allocation.resources.units.items():
            if name not in self._free:
                assert name.startswith(BUNDLE), f"{allocation} is another pool's"
                continue  # of a bundle that has ended
            self._free[name] += sign * amount
            self._given[name] -= sign * amount
            assert self._given[name] >= 0, f"{allocation} came back twice, or is another pool's"
        if allocation.gpu_shares and (cards := self._cards.get(_gpu_of(allocation.resources))) is not None:
            for index, share in allocation.gpu_shares:
                cards[index] += sign * share


def _gpu_of(request: ResourceSet) -> str:
    """By which name it asks for GPUs: the machine's or a bundle's; "" if it asks for none."""
    return next(filter(_is_gpu, request.units), "")


def _pick_gpus(free: Mapping[int, int], wanted: int) -> list[tuple[int, int]] | None:
    """(index, share) of the GPUs that a request gets, from the free share of each; None if they do not allow it."""
    if not wanted:
        return []
    if wanted < UNITS:
        fullest_first = sorted((room, index) for index, room in free.items() if room >= wanted)
        return [(fullest_first[0][1], wanted)] if fullest_first else None
    whole = [(index, UNITS) for index, room in free.items() if room == UNITS][: wanted // UNITS]
    return whole if len(whole) * UNITS == wanted else None
