"""Peers behind NATs of every kind become direct where that is possible, and stay in touch through faults.

Sites of a random mix, on links that lose up to a hundredth, talk in random pairs: first by a relay, then directly. Then
gateways forget their mappings or get another address, block UDP for a while or are cut off, and a relay dies. On the
way nobody floods anybody. In the end every pair hears each other, and every pair that can is direct.
"""

from __future__ import annotations

from random import Random

from lattica.mesh.nat.attempts import Attempted
from lattica.mesh.nat.methods import Method
from lattica.mesh.nat.routes import Direct
from lattica.mesh.nat.salvos import RATE
from lattica.testing.nat_nodes import RELAYS, NatLab
from lattica.testing.world import World

MIX = {  # FACTS' "mixed" population, its classes spread over the types that netlab has
    "public": 3,
    "full-cone": 6,
    "restricted-cone": 6,
    "port-restricted": 30,
    "port-restricted-random": 10,
    "firewall": 10,
    "double": 10,
    "symmetric-seq": 4,
    "symmetric": 9,
    "address-symmetric": 4,
    "udp-blocked": 5,
    "tcp443-only": 3,
}
OPEN = {"public", "full-cone", "restricted-cone"}
SYMMETRIC = {"symmetric", "symmetric-seq", "address-symmetric"}
MET_S = 8.0  # all have measured what they are behind
PUNCHED_S = 75.0  # of peace: a round that failed by bad luck is repeated after half a minute
STORM_S = 60.0
HEALED_S = 240.0  # the longest pause after two attempts in vain, and what the attempt takes
HEARD_S = 3.0
EVERY_S = 1.0
OF_PAIR = 250  # datagrams a second to one peer: two salvos of six targets, probes, answers, data
MEASURING = 120  # datagrams in the second in which a node asks what it is behind


def can_be_direct(one: str, other: str) -> bool:
    """By the table of kernel NATs in FACTS, and the methods beyond it."""
    pair = {one, other}
    symmetric = [nat for nat in (one, other) if nat in SYMMETRIC]
    if "tcp443-only" in pair or ("udp-blocked" in pair and symmetric):
        return False
    return len(symmetric) < 2 or pair == {"symmetric-seq"}


def takes_birthday(one: str, other: str) -> bool:
    """Whether only that method leads there; a node has a few of them an hour."""
    pair = {one, other}
    return bool(pair & SYMMETRIC) and not pair & OPEN and "symmetric-seq" not in pair and can_be_direct(one, other)


def play(seed: int, long: bool = False) -> World:
    """Peace, a storm of faults, and peace again: then every pair must hear each other, and be direct if it can."""
    world = World(seed)
    lab, rng = NatLab(world), Random(f"population {seed}")
    types = _population(lab, rng, 20 if long else 7)
    hosts = [f"{site}1" for site in types]
    lab.begin(hosts)
    world.run(MET_S)
    pairs = _pairs(rng, hosts, 3 * len(hosts) // 2)
    for pair in pairs:
        world.after(rng.uniform(0, 2.0), lab.talk, *pair, EVERY_S)
    world.after(1.0, _count, lab, hosts, dict.fromkeys(hosts, 0))
    world.run(MET_S + PUNCHED_S)
    _judge(lab, pairs, types, birthdays=True)

    for _ in range(rng.randint(1, 2 * len(types))):
        world.after(rng.uniform(0, STORM_S), _break, lab, rng, types)
    world.after(rng.uniform(0, STORM_S), world.crash, RELAYS[1])
    world.run(world.now + STORM_S)
    for site, nat in types.items():
        lab.nats.cut(site, cut=False)
        lab.nats.change(site, udp=nat != "udp-blocked")
    world.run(world.now + HEALED_S)
    _judge(lab, pairs, types, birthdays=False)
    return world


def _population(lab: NatLab, rng: Random, size: int) -> dict[str, str]:
    """Sites by name, each with one host that takes part, and their types."""
    types: dict[str, str] = {}
    for number in range(size):
        name, nat = f"s{number}x", rng.choices(list(MIX), list(MIX.values()))[0]
        wan_s, loss = rng.uniform(0.002, 0.06), rng.choice([0.0, 0.0, 0.01])
        upstream = f"isp{number}" if nat == "double" else None
        if upstream:
            lab.nats.site(upstream, "cgn", hosts=0, wan_s=wan_s / 2)
        preset = "port-restricted" if nat == "double" else nat
        if preset != "public" and rng.random() < 0.2:
            preset += rng.choice([" unsolicited=accept", " unsolicited=reject", " udp_stream=45"])
        lab.nats.site(name, preset, wan_s=wan_s, loss=loss, upstream=upstream)
        lab.add(f"{name}1")
        types[name] = nat
    return types


def _pairs(rng: Random, hosts: list[str], size: int) -> list[tuple[str, str]]:
    chosen: set[tuple[str, str]] = set()
    while len(chosen) < min(size, len(hosts) * (len(hosts) - 1) // 2):
        one, other = sorted(rng.sample(hosts, 2))
        chosen.add((one, other))
    return sorted(chosen)


def _break(lab: NatLab, rng: Random, types: dict[str, str]) -> None:
    """Something happens to one gateway."""
    site = rng.choice(list(types))
    lasts_s = rng.uniform(1.0, 15.0)
    match rng.choice(["flush", "roam", "udp", "cut"]):
        case "flush":
            lab.nats.flush(site)
        case "roam" if lab.nats.sites[site].gateway.nat.mapping != "none":
            lab.nats.roam(site)
        case "udp" if types[site] != "udp-blocked":
            lab.nats.change(site, udp=False)
            lab.world.after(lasts_s, lambda: lab.nats.change(site, udp=True))
        case "cut":
            lab.nats.cut(site)
            lab.world.after(lasts_s, lambda: lab.nats.cut(site, cut=False))


def _count(lab: NatLab, hosts: list[str], before: dict[str, int]) -> None:
    """Nobody sends more in a second than its peers and one birthday at a time allow."""
    for host in hosts:
        sent = lab.nats.packets.get(host, 0)
        bound = MEASURING + OF_PAIR * len(lab.node(host).tables) + RATE * _had_birthday(lab, host)
        assert sent - before[host] <= bound, f"{host} sent {sent - before[host]} datagrams in a second, not {bound}"
        before[host] = sent
    lab.world.after(1.0, _count, lab, hosts, before)


def _had_birthday(lab: NatLab, host: str) -> bool:
    """Whether a birthday may have been under way in the last second: it may have ended since."""
    for at, name, event in reversed(lab.world.events):
        if at < lab.world.now - 1.0:
            break
        if name == host and isinstance(event, Attempted) and event.method is Method.BIRTHDAY:
            return True
    return any(puncher.busy for puncher in lab.node(host).punchers.values())


def _judge(lab: NatLab, pairs: list[tuple[str, str]], types: dict[str, str], *, birthdays: bool) -> None:
    """Everybody hears everybody, and who can be direct is."""
    share: dict[str, int] = {}
    for one, other in pairs:
        for name, peer in ((one, other), (other, one)):
            node = lab.node(name)
            silent_s = lab.world.now - node.got.get(peer, 0.0)
            assert silent_s <= HEARD_S, f"{name} has not heard {peer} for {silent_s:.1f} s: {node.tables[peer]!r}"
        share[one] = share.get(one, 0) + takes_birthday(types[one[:-1]], types[other[:-1]])
        share[other] = share.get(other, 0) + takes_birthday(types[one[:-1]], types[other[:-1]])
    for one, other in pairs:
        nats = types[one[:-1]], types[other[:-1]]
        birthday = takes_birthday(*nats)
        if not can_be_direct(*nats) or (birthday and (not birthdays or max(share[one], share[other]) > 4)):
            continue
        direct = lab.is_direct(one, other)
        assert direct or _was_lossy(lab, one, other), f"{one} ({nats[0]}) and {other} ({nats[1]}) are relayed"
        lab.world.count("direct" if direct else "relayed for loss")


def _was_lossy(lab: NatLab, one: str, other: str) -> bool:
    """Whether both have proven direct paths, and one of them prefers the relay just now: some probes were lost."""
    paths = [lab.node(name).tables[peer].paths for name, peer in ((one, other), (other, one))]
    return all(any(isinstance(path.route, Direct) and path.proven for path in side) for side in paths)
