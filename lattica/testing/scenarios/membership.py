"""A mesh outlives its tickets by a year: its founder dies, issuers come and go, machines sleep, one peer is revoked.

Tickets are good for a week, memberships for a month. In the end everybody who was there is a member still, under the
same key and with the same roles, and takes a job of everybody else's; but for the revoked one, whom nobody talks to,
and a laptop that slept for longer than a membership can be renewed, which is told what to do.
"""

from __future__ import annotations

from itertools import product
from random import Random

from lattica.ids import JobId
from lattica.mesh.admission import ASK_FOR_TICKET, MembershipLost, MembershipRenewed
from lattica.mesh.certificates import DAY_S
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.testing.members import MemberNode, Mesh, Turned
from lattica.testing.world import Link, World

FOUNDER, ISSUERS = "founder", ("anchor", "buoy")
LAPTOP, FORGOTTEN, REVOKED, SIBLING = "laptop", "forgotten", "revoked", "sibling"
SETTLED_DAY = 12  # everybody has come, and the founder is dead
YEAR = 365


def play(seed: int, long: bool = False) -> World:
    """A year with four other members; three years with twenty if `long`."""
    world = World(seed, link=Link(delay_s=(0.01, 20.0), loss=0.2, duplicates=0.05))
    rng, mesh = world.rng, Mesh()
    others = [f"member {number}" for number in range(20 if long else 4)]
    everybody = [FOUNDER, *ISSUERS, LAPTOP, FORGOTTEN, REVOKED, SIBLING, *others]
    _begin(world, mesh, rng, everybody)
    days = (3 if long else 1) * YEAR + SETTLED_DAY

    def day(number: float) -> float:
        return number * DAY_S - world.now

    # the founder goes for good; sleepers sleep; who is to be revoked is revoked by one issuer, perhaps while it sleeps
    world.after(day(rng.uniform(8, SETTLED_DAY)), world.crash, FOUNDER)
    naps = [(LAPTOP, rng.uniform(20, 60), 40.0), (FORGOTTEN, rng.uniform(20, 60), rng.uniform(215, 290))]
    if rng.random() < 0.5:
        naps.append((REVOKED, 90, 50))
    for name, begins, lasts in naps:
        world.after(day(begins), world.suspend, name)
        world.after(day(begins + lasts), world.wake, name)
    revoked_on = rng.uniform(80, 120)
    world.after(day(revoked_on), _revoke, world, rng.choice(ISSUERS))

    # processes end and come back, one of the two issuers at a time; halves of the mesh lose each other for weeks
    for start in range(SETTLED_DAY, days - 20, 8):
        name = rng.choice([*ISSUERS, *others, SIBLING])
        world.after(day(start), world.crash, name)
        world.after(day(start + rng.uniform(0.1, 7)), world.restart, name)
    for start in range(130, days - 70, 90):
        half = set(rng.sample(everybody, len(everybody) // 2))
        world.after(day(start), world.partition, sorted(half), sorted(set(everybody) - half))
        world.after(day(start + rng.uniform(1, 40)), _reunite, world, half, set(everybody) - half)

    world.watch(lambda: _nobody_has_more_than_it_was_given(world))
    world.run(days * DAY_S)
    world.heal()
    world.run(world.now + 20 * DAY_S)
    _judge(world, everybody, revoked_on)
    return world


def _begin(world: World, mesh: Mesh, rng: Random, everybody: list[str]) -> None:
    """The founder, who makes two issuers; then all others, with two tickets, in a week."""
    world.add_host(FOUNDER, lambda host: MemberNode(host, mesh), disk=mesh.founder(FOUNDER))
    founder: MemberNode = world.core(FOUNDER)
    for name in ISSUERS:
        issuing = founder.issuing.issuer(f"issuer {name}", founder.unix_s) if founder.issuing else None
        assert issuing is not None
        disk = mesh.issuer(name, issuing, founder.unix_s, founder.trust.statements())
        world.add_host(name, lambda host: MemberNode(host, mesh), disk=disk, offset_s=rng.uniform(-600, 600))
    tickets = [founder.ticket(), founder.ticket()]

    def join(name: str) -> None:
        unix_s, which = founder.unix_s, 0 if name in (REVOKED, SIBLING) else 1
        disk = mesh.joiner(name, tickets[which], unix_s)
        world.add_host(name, lambda host: MemberNode(host, mesh), disk=disk, offset_s=rng.uniform(-600, 600))

    for name in everybody:
        if name not in (FOUNDER, *ISSUERS):
            world.after(rng.uniform(0, 5) * DAY_S, join, name)


def _reunite(world: World, half: set[str], others: set[str]) -> None:
    for ends in product(sorted(half), sorted(others)):
        world.mend(*ends)


def _revoke(world: World, by: str) -> None:
    """If that issuer is down, it does so when it is there again."""
    if not world.is_alive(by):
        world.after(DAY_S, _revoke, world, by)
        return
    member = world.core(REVOKED).member
    world.tell(by, "revoke", PeerId(member.peer), member.invite)


def _nobody_has_more_than_it_was_given(world: World) -> None:
    for name in world.living:
        given = EVERYTHING if name in (FOUNDER, *ISSUERS) else MEMBER
        assert world.core(name).member.roles == given, f"{name} has {world.core(name).member.roles}"


def _judge(world: World, everybody: list[str], revoked_on: float) -> None:
    lost = {name: event for _, name, event in world.events if isinstance(event, MembershipLost)}
    stayed = [name for name in everybody if name not in (FOUNDER, FORGOTTEN, REVOKED)]
    for name in stayed:
        node: MemberNode = world.core(name)
        assert world.is_alive(name) and name not in lost, f"{name} is a member no more: {lost.get(name)}"
        assert node.member.expires > node.unix_s and not node.member.via_invite, f"{node!r} was not renewed"
    assert FORGOTTEN in lost and lost[FORGOTTEN].do_next == ASK_FOR_TICKET, (
        "the forgotten laptop is not told what to do"
    )
    assert lost.keys() <= {FORGOTTEN, REVOKED, FOUNDER}
    slept = [
        event.expired_for_s
        for _, name, event in world.events
        if name == LAPTOP and isinstance(event, MembershipRenewed) and event.expired_for_s > 0
    ]
    assert slept and max(slept) < 40 * DAY_S, "the laptop does not say that it was renewed after its membership ended"
    digests = {name: world.core(name).trust.digest() for name in stayed}
    assert len(set(digests.values())) == 1, f"not all have heard the same: {digests}"
    outcast = world.core(REVOKED).member
    assert all(world.core(name).trust.revoked(outcast) for name in stayed), "somebody talks to the revoked peer"
    turned = [(when, event) for when, _, event in world.events if isinstance(event, Turned) and event.peer == REVOKED]
    early = [event for when, event in turned if when < revoked_on * DAY_S and "revoked" in event.reason]
    assert not early, f"it was refused before anybody had revoked it: {early}"
    for submitter in stayed:
        token = world.core(submitter).token(JobId(bytes(16)))
        for name in stayed:
            submission = world.core(name).submission(token)
            assert submission.peer == world.core(submitter).key.peer and Role.SUBMIT in submission.roles
