"""Amounts neither vanish nor appear, and a wrong request says what to ask for instead."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from lattica.errors import ConfigError
from lattica.scheduler.resources import UNITS, Allocation, ResourcePool, ResourceSet, parse_request

amounts = st.integers(0, 5 * UNITS).map(lambda units: units / UNITS)
names = st.sampled_from(["CPU", "memory", "tpu", "site:lab"])
sets = st.dictionaries(names, amounts, max_size=4).map(ResourceSet.of)


def of(**amounts: float) -> ResourceSet:
    return ResourceSet.of(amounts)


# ---- sets ---------------------------------------------------------------------------------------------------------


@given(sets, sets)
def test_adding_and_taking_away_leaves_no_trace(a: ResourceSet, b: ResourceSet) -> None:
    assert a + b == b + a and hash(a + b) == hash(b + a)
    assert (a + b) - b == a


@given(sets)
def test_a_set_survives_a_message(a: ResourceSet) -> None:
    assert ResourceSet.of(a.to_dict()) == a and pickle.loads(pickle.dumps(a)) == a


@given(st.integers(0, UNITS * 1000))
def test_every_amount_of_ten_thousandths_is_kept_exactly(units: int) -> None:
    assert ResourceSet.of({"CPU": units / UNITS}).units.get("CPU", 0) == units


def test_tenths_add_up_to_one() -> None:
    assert sum([of(CPU=0.1)] * 9, start=of(CPU=0.1)) == of(CPU=1)


def test_thirds_are_rounded_down_so_that_three_share_one() -> None:
    pool = ResourcePool(of(GPU=1))
    assert [gpus_of(pool.acquire(parse_request(num_gpus=1 / 3))) for _ in range(3)] == [(0,)] * 3
    assert not pool.fits(parse_request(num_gpus=0.1))


def test_zeros_are_left_out_so_that_equal_demands_are_one_scheduling_class() -> None:
    assert of(CPU=1, tpu=0) == of(CPU=1.0) and hash(of(CPU=1, tpu=0)) == hash(of(CPU=1))


def test_whole_amounts_read_as_whole_numbers() -> None:
    assert repr(of(CPU=4, GPU=0.5).to_dict()) == "{'CPU': 4, 'GPU': 0.5}"
    assert repr(of(CPU=4, GPU=0.5)) == "<4 CPU, 0.5 GPU>"


def test_bytes_of_memory_are_exact_beyond_the_precision_of_floats() -> None:
    assert parse_request(memory=2**60 + 1)["memory"] == 2**60 + 1


@pytest.mark.parametrize("one", [np.float32(1), np.int64(1), Fraction(1), True])
def test_any_kind_of_number_counts(one: object) -> None:
    assert parse_request(num_cpus=one) == of(CPU=1)  # type: ignore[arg-type]


# ---- requests -----------------------------------------------------------------------------------------------------


def test_a_request_collects_keywords_and_custom_resources() -> None:
    assert parse_request(num_cpus=2, num_gpus=0.5, memory=1e6, resources={"tpu": 1}) == ResourceSet.of(
        {"CPU": 2, "GPU": 0.5, "memory": 1_000_000, "tpu": 1}
    )


@pytest.mark.parametrize(
    ("request_", "says", "do_next"),
    [
        ({"num_cpus": -1}, "num_cpus=-1 is not an amount", "ask for 0 or more CPU"),
        ({"num_cpus": math.nan}, "num_cpus=nan is not an amount", "ask for 0 or more CPU"),
        ({"num_gpus": math.inf}, "num_gpus=inf is not an amount", "ask for 0 or more GPU"),
        ({"num_cpus": 1.7e304}, "num_cpus=1.7e+304 is more than any machine has", "ask for at most"),
        ({"memory": 1 << 63}, "memory=9.22337e+18 is more than any machine has", "ask for at most"),
        ({"num_cpus": 0.00001}, "num_cpus=1e-05 is less than the smallest amount", "ask for at least 0.0001"),
        ({"num_gpus": 1.5}, "num_gpus=1.5: more than one GPU must be a whole number", "ask for 1 or 2, or for a"),
        ({"num_cpus": "4"}, "num_cpus='4' is no number", "pass a number of CPU"),
        ({"memory": "2GiB"}, "memory='2GiB' is no number", "pass a number of bytes"),
        ({"memory": math.nan}, "memory=nan is not an amount", "ask for 0 or more memory"),
        ({"resources": {"tpu": None}}, "tpu=None is no number", "pass a number of tpu"),
        ({"resources": {"": 1}}, "'' is no name of a resource", "use a short, non-empty string"),
        ({"resources": {7: 1}}, "7 is no name of a resource", "use a short, non-empty string"),
        ({"resources": {"CPU": 1}}, "resources={'CPU': ...} is not accepted", "say it by the keyword num_cpus"),
        ({"resources": {"memory": 1}}, "resources={'memory': ...} is not accepted", "say it by the keyword memory"),
        ({"resources": {str(n): 1 for n in range(65)}}, "65 resources in one request", ""),
    ],
)
def test_a_wrong_request_says_what_is_wrong_and_what_to_ask_for(request_: dict, says: str, do_next: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_request(**request_)
    assert caught.value.message.startswith(says) and caught.value.do_next.startswith(do_next)


def test_a_wrong_request_is_a_value_error_as_in_ray() -> None:
    with pytest.raises(ValueError):
        parse_request(num_cpus=-1)


# ---- the pool -----------------------------------------------------------------------------------------------------


def gpus_of(allocation: Allocation | None) -> tuple[int, ...]:
    assert allocation is not None
    return allocation.gpus


def test_a_request_takes_all_or_nothing() -> None:
    pool = ResourcePool(of(CPU=4, tpu=1))
    assert pool.acquire(of(CPU=1, tpu=2)) is None and pool.available == {"CPU": 4, "tpu": 1}
    assert pool.acquire(of(CPU=1, tpu=1)) and pool.available == {"CPU": 3, "tpu": 0}


def test_what_can_never_fit_is_told_from_what_does_not_fit_now() -> None:
    pool = ResourcePool(of(CPU=2, GPU=1))
    pool.acquire(of(CPU=2))
    assert not pool.fits(of(CPU=1)) and pool.feasible(of(CPU=1)) and pool.missing(of(CPU=1)) == ""
    assert pool.missing(of(CPU=1, GPU=2, tpu=1)) == "2 GPU (of 1), 1 tpu (of 0)"


def test_a_request_for_nothing_fits_even_into_an_overdrawn_pool() -> None:
    pool = ResourcePool(of(CPU=1))
    pool.acquire(of(CPU=1))
    pool.force_acquire(of(CPU=1))
    assert pool.overdrawn and pool.fits(of()) and not pool.fits(of(CPU=0.1))


def test_a_worker_that_runs_again_takes_its_cpu_back_and_nothing_starts_until_the_debt_is_paid() -> None:
    """A task blocks in get and lends its CPU to its child; it wakes before the child ends: 2 run on 1 CPU. When the
    child ends the pool is back at 0, not at 1."""
    pool = ResourcePool(of(CPU=1, GPU=1))
    parent = pool.acquire(of(CPU=1, GPU=1))
    assert parent
    pool.release(parent.only("CPU"))
    child = pool.acquire(of(CPU=1))
    assert child and not pool.fits(of(GPU=1))  # a blocked worker keeps its GPU: its memory is still in use
    pool.force_acquire(parent.resources.only("CPU"))
    assert pool.overdrawn and pool.available["CPU"] == 0
    pool.release(child)
    assert not pool.overdrawn and not pool.fits(of(CPU=1))
    pool.release(parent)
    assert pool.available == {"CPU": 1, "GPU": 1}
    pool.validate()


def test_only_cpu_can_be_overdrawn() -> None:
    with pytest.raises(AssertionError, match="only CPU"):
        ResourcePool(of(CPU=1, GPU=1)).force_acquire(of(GPU=1))


def test_releasing_twice_is_a_broken_invariant_not_a_gift() -> None:
    pool = ResourcePool(of(CPU=1))
    allocation = pool.acquire(of(CPU=1))
    assert allocation
    pool.release(allocation)
    with pytest.raises(AssertionError, match="came back twice"):
        pool.release(allocation)


def test_whole_gpus_get_different_indices_and_come_back() -> None:
    pool = ResourcePool(of(GPU=4))
    two = pool.acquire(of(GPU=2))
    assert two and two.gpus == (0, 1) and gpus_of(pool.acquire(of(GPU=1))) == (2,)
    pool.release(two)
    assert gpus_of(pool.acquire(of(GPU=3))) == (0, 1, 3)


def test_fractions_share_one_gpu_and_leave_the_others_whole() -> None:
    pool = ResourcePool(of(GPU=2))
    assert [gpus_of(pool.acquire(of(GPU=0.5))) for _ in range(2)] == [(0,), (0,)]
    assert pool.fits(of(GPU=1))


def test_two_shares_on_two_gpus_are_not_a_whole_one() -> None:
    pool = ResourcePool(of(GPU=2))
    assert [gpus_of(pool.acquire(of(GPU=0.6))) for _ in range(2)] == [(0,), (1,)]
    assert pool.available["GPU"] == 0.8 and not pool.fits(of(GPU=0.5)) and not pool.fits(of(GPU=1))


# -- bundles of placement groups -----------------------------------------------------------------------------------


def test_what_a_bundle_has_is_for_what_runs_in_it_alone() -> None:
    pool = ResourcePool(of(CPU=4, tpu=1))
    bundle = pool.acquire(of(CPU=3))
    assert bundle is not None
    pool.grow(7, bundle)
    assert not pool.fits(of(CPU=2)) and pool.fits(of(CPU=1))
    inside = of(CPU=2).in_bundle(7)
    assert inside.plain() == of(CPU=2)
    taken = pool.acquire(inside)
    assert taken is not None and not pool.fits(inside) and pool.fits(of(CPU=1).in_bundle(7))
    assert pool.available == {"CPU": 1, "tpu": 1}, "views show the machine, not what is inside bundles"
    assert pool.missing(of(CPU=4).in_bundle(7)) == "4 CPU (of 3)"
    assert pool.in_bundles("CPU") == 3 * UNITS


def test_a_worker_in_a_bundle_lends_its_cpus_to_its_group_only() -> None:
    pool = ResourcePool(of(CPU=2))
    bundle = pool.acquire(of(CPU=2))
    assert bundle is not None
    pool.grow(1, bundle)
    parent = pool.acquire(of(CPU=2).in_bundle(1))
    assert parent is not None
    pool.release(parent.cpus())
    assert not pool.fits(of(CPU=1))
    child = pool.acquire(of(CPU=1).in_bundle(1))
    assert child is not None
    pool.force_acquire(parent.resources.cpus())
    assert pool.overdrawn
    pool.release(child)
    pool.release(parent)
    pool.validate()


def test_gpus_of_a_bundle_are_those_that_it_got() -> None:
    pool = ResourcePool(of(GPU=4))
    first = pool.acquire(of(GPU=1))
    bundle = pool.acquire(of(GPU=2))
    assert first is not None and bundle is not None and bundle.gpus == (1, 2)
    pool.grow(1, bundle)
    assert gpus_of(pool.acquire(of(GPU=1).in_bundle(1))) == (1,)
    assert gpus_of(pool.acquire(of(GPU=0.5).in_bundle(1))) == (2,)
    assert gpus_of(pool.acquire(of(GPU=1))) == (3,)
    assert not pool.fits(of(GPU=1).in_bundle(1))


def test_what_still_runs_in_a_bundle_that_has_ended_gives_nothing_back() -> None:
    pool = ResourcePool(of(CPU=2, GPU=1))
    bundle = pool.acquire(of(CPU=1, GPU=1))
    assert bundle is not None
    pool.grow(1, bundle)
    lease = pool.acquire(of(CPU=1, GPU=1).in_bundle(1))
    assert lease is not None
    pool.release(lease.cpus())
    pool.release(bundle)
    pool.shrink(1)
    pool.force_acquire(lease.resources.cpus())
    pool.release(lease)
    assert pool.available == {"CPU": 2, "GPU": 1}
    assert pool.missing(lease.resources)
    pool.validate()


def test_nobody_can_ask_by_name_for_what_is_in_a_bundle() -> None:
    with pytest.raises(ConfigError, match="placement groups"):
        parse_request(resources={"pg/1/CPU": 1})


class PoolOfAMachine(RuleBasedStateMachine):
    """Any order of acquiring, blocking, running again and dying keeps the books, in bundles and outside."""

    running, blocked, bundles = Bundle("running"), Bundle("blocked"), Bundle("bundles")
    numbers = 0

    def __init__(self) -> None:
        super().__init__()
        self.pool = ResourcePool(ResourceSet.of({"CPU": 4, "GPU": 3, "tpu": 2}))

    @rule(
        target=running,
        cpu=st.integers(0, 5 * UNITS),
        gpu=st.integers(0, UNITS) | st.sampled_from([2 * UNITS, 3 * UNITS]),
        tpu=st.sampled_from([0, UNITS]),
    )
    def acquire(self, cpu: int, gpu: int, tpu: int) -> Allocation:
        request = ResourceSet({"CPU": cpu, "GPU": gpu, "tpu": tpu})
        assert bool(self.pool.missing(request)) == (cpu > 4 * UNITS)
        fits = self.pool.fits(request)
        allocation = self.pool.acquire(request)
        assert fits == (allocation is not None)
        if allocation is None:
            return Allocation(ResourceSet({}))
        assert sum(share for _, share in allocation.gpu_shares) == gpu
        assert len(set(allocation.gpus)) == math.ceil(gpu / UNITS)
        return allocation

    @rule(target=blocked, allocation=consumes(running))
    def block(self, allocation: Allocation) -> Allocation:
        self.pool.release(allocation.cpus())
        return allocation

    @rule(target=running, allocation=consumes(blocked))
    def run_again(self, allocation: Allocation) -> Allocation:
        self.pool.force_acquire(allocation.resources.cpus())
        return allocation

    @rule(target=bundles, cpu=st.integers(0, 2 * UNITS), gpu=st.sampled_from([0, UNITS // 2, UNITS, 2 * UNITS]))
    def keep(self, cpu: int, gpu: int) -> tuple[int, Allocation]:
        allocation = self.pool.acquire(ResourceSet({"CPU": cpu, "GPU": gpu}))
        self.numbers += 1
        if allocation is None:
            return 0, Allocation(ResourceSet({}))
        self.pool.grow(self.numbers, allocation)
        return self.numbers, allocation

    @rule(target=running, bundle=bundles, cpu=st.integers(0, UNITS), gpu=st.sampled_from([0, UNITS // 4, UNITS]))
    def acquire_inside(self, bundle: tuple[int, Allocation], cpu: int, gpu: int) -> Allocation:
        number, whole = bundle
        allocation = self.pool.acquire(ResourceSet({"CPU": cpu, "GPU": gpu}).in_bundle(number))
        if allocation is None:
            return Allocation(ResourceSet({}))
        assert set(allocation.gpus) <= set(whole.gpus) and bool(allocation.gpus) == bool(gpu)
        return allocation

    @rule(bundle=consumes(bundles))
    def end(self, bundle: tuple[int, Allocation]) -> None:
        number, allocation = bundle
        if number:
            self.pool.release(allocation)
            self.pool.shrink(number)

    @rule(allocation=consumes(running))
    def finish(self, allocation: Allocation) -> None:
        self.pool.release(allocation)

    @rule(allocation=consumes(blocked))
    def die_while_blocked(self, allocation: Allocation) -> None:
        self.pool.release(allocation.but_cpus())

    @invariant()
    def books_are_kept(self) -> None:
        self.pool.validate()


TestPoolOfAMachine = PoolOfAMachine.TestCase
