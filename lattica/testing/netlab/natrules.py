"""The nft ruleset of a gateway: its NAT and its firewall. Interfaces are called "wan" and "lan".

The kernel's own source NAT keeps the port where it can, but it neither promises the same port for every destination nor
lets strangers in. So what it chose is written down after the fact, by rules behind it (chain `seen`), in maps:

    eim_*   inner address and port -> outer     new flows from the same inner port are sent by it
    adm_*   the same, per destination address
    fc_*    outer port -> inner                 what strangers send is let in by it, as far as the filtering allows
    perm_*  who was sent to, from which port    address-dependent filtering (RFC 4787 §5)
    used_*  outer ports that are taken
    static_*, rstatic_*  port maps, both ways   filled by NAT-PMP

Endpoint-dependent NATs need none of these maps: they get a port per flow from the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .topology import Nat

MAP_SIZE = 16384
"""Entries of each map: the kernel sets a hash table of this size aside for each, so it is kept moderate."""
TCP_TIMEOUT_S = 7440
"""Two hours and four minutes: the least that RFC 5382 §5 allows for an idle TCP mapping."""
SEQUENTIAL_PORTS = range(20000, 24096)

PAIR = "ipv4_addr . inet_service"
INNER = "ct original ip saddr . ct original proto-src"
INNER_OF_REPLY = "ct reply ip saddr . ct reply proto-src"

HOOKS = {
    "pre": "type nat hook prerouting priority dstnat; policy accept;",
    "post": "type nat hook postrouting priority srcnat; policy accept;",
    "seen": "type filter hook postrouting priority 150; policy accept;",
}
STOPS: Mapping[str, Sequence[str]] = {
    "drop": ["drop"],
    "reject": ["meta l4proto tcp reject with tcp reset", "reject"],
    "accept": ["accept"],
}


def gateway_rules(nat: Nat, outer: str, ipv6: str) -> str:
    """The ruleset that replaces a gateway's. outer: its address on the wan side; ipv6: as `Site.ipv6`."""
    maps: list[str] = []
    chains: dict[str, list[str]] = {"pre": [], "post": [], "seen": []}
    for proto, timeout_s in (("udp", nat.udp_stream), ("tcp", TCP_TIMEOUT_S)):
        maps += _maps(nat, proto, timeout_s)
        if nat.mapping != "none":
            chains["pre"] += _inbound(nat, proto, outer)
            chains["post"] += [line for way in _ways_out(nat, proto) for line in _outbound(nat, proto, outer, way)]
            chains["seen"] += [line for way in _ways_out(nat, proto) for line in _seen(nat, proto, outer, way)]
            chains["seen"] += _seen_replies(nat, proto, outer)
    if nat.mapping != "none":
        chains["post"].append(f'oifname "wan" snat ip to {outer}')
    lines = ["table ip nat", "delete table ip nat", "table inet fw", "delete table inet fw", "table ip nat {", *maps]
    for name, rules in chains.items():
        lines += [f"chain {name} {{\n{HOOKS[name]}", *rules, "}"]
    return "\n".join([*lines, "}", *_firewall(nat, ipv6)]) + "\n"


def _maps(nat: Nat, proto: str, timeout_s: int) -> list[str]:
    dynamic = f"flags timeout,dynamic; timeout {timeout_s}s; size {MAP_SIZE};"
    lines = []
    if nat.mapping == "eim":
        lines += [
            f"map eim_{proto} {{ type {PAIR} : {PAIR}; {dynamic} }}",
            f"map fc_{proto} {{ type inet_service : {PAIR}; {dynamic} }}",
            f"set used_{proto} {{ type inet_service; {dynamic} }}",
        ]
        if nat.filtering == "adf":
            lines.append(f"set perm_{proto} {{ type {PAIR}; {dynamic} }}")
    if nat.mapping == "adm":
        lines.append(f"map adm_{proto} {{ type {PAIR} . ipv4_addr : {PAIR}; {dynamic} }}")
    return [
        *lines,
        f"map static_{proto} {{ type inet_service : {PAIR}; }}",
        f"map rstatic_{proto} {{ type {PAIR} : {PAIR}; }}",
    ]


def _inbound(nat: Nat, proto: str, outer: str) -> list[str]:
    """Port maps, then what the filtering allows, then hairpins."""
    to_outer = f'iifname "wan" ip daddr {outer}'
    lines = [f"{to_outer} dnat ip to {proto} dport map @static_{proto}"]
    if nat.mapping == "eim" and nat.filtering == "eif":
        lines.append(f"{to_outer} dnat ip to {proto} dport map @fc_{proto}")
    if nat.mapping == "eim" and nat.filtering == "adf":
        lines.append(f"{to_outer} ip saddr . {proto} dport @perm_{proto} dnat ip to {proto} dport map @fc_{proto}")
    if nat.hairpin:
        to_outer = f'iifname "lan" ip daddr {outer}'
        lines += [
            f"{to_outer} meta l4proto {proto} ct mark set 1",
            f"{to_outer} dnat ip to {proto} dport map @static_{proto}",
            f"{to_outer} dnat ip to {proto} dport map @fc_{proto}",
        ]
    return lines


def _ways_out(nat: Nat, proto: str) -> list[str]:
    """What matches a packet that leaves by the outer address: to the wan, and hairpinned back into the LAN."""
    return ['oifname "wan" '] + ([f"ct mark 1 meta l4proto {proto} "] if nat.hairpin else [])


def _outbound(nat: Nat, proto: str, outer: str, way: str) -> list[str]:
    any_port = f"{way}meta l4proto {proto} snat ip to {outer}:1024-65535 fully-random"
    lines = [f"{way}snat ip to ip saddr . {proto} sport map @rstatic_{proto}"]
    match nat.mapping:
        case "eim":
            lines.append(f"{way}snat ip to ip saddr . {proto} sport map @eim_{proto}")
            if nat.ports == "preserve":
                lines += [
                    f"{way}{proto} sport @used_{proto} snat ip to {outer}:20000-59999 fully-random",
                    f"{way}meta l4proto {proto} snat ip to {outer}",
                ]
            else:
                lines.append(any_port)
        case "adm":
            lines += [f"{way}snat ip to ip saddr . {proto} sport . ip daddr map @adm_{proto}", any_port]
        case "apdm":
            lines.append(any_port)
        case "apdm-seq":
            ports = ", ".join(f"{i} : {port}" for i, port in enumerate(SEQUENTIAL_PORTS))  # numgen alone swaps bytes
            number = f"numgen inc mod {len(SEQUENTIAL_PORTS)} map {{ {ports} }}"
            lines.append(f"{way}meta l4proto {proto} snat ip to {outer} : {number}")
    return lines


def _seen(nat: Nat, proto: str, outer: str, way: str) -> list[str]:
    """What the kernel chose; every outbound packet writes it down again, which keeps the mapping alive. Not what leaves
    by an address that was the gateway's: such flows live until they are flushed, and would bring it back."""
    is_proto = "" if "l4proto" in way else f"meta l4proto {proto} "
    way = f"{way}{is_proto}ct direction original ip saddr {outer} "
    if nat.mapping == "eim":
        return _remembered(nat, proto, way, INNER)
    if nat.mapping == "adm":
        return [f"{way}update @adm_{proto} {{ {INNER} . ip daddr : ip saddr . {proto} sport }}"]
    return []


def _seen_replies(nat: Nat, proto: str, outer: str) -> list[str]:
    """Answers to strangers that were let in keep the mapping alive as well."""
    if nat.mapping != "eim":
        return []
    way = f'oifname "wan" meta l4proto {proto} ct direction reply ct status dnat ip saddr {outer} '
    return _remembered(nat, proto, way, INNER_OF_REPLY)


def _remembered(nat: Nat, proto: str, way: str, inner: str) -> list[str]:
    lines = [
        f"{way}update @eim_{proto} {{ {inner} : ip saddr . {proto} sport }}",
        f"{way}update @fc_{proto} {{ {proto} sport : {inner} }}",
        f"{way}update @used_{proto} {{ {proto} sport }}",
    ]
    if nat.filtering == "adf":
        lines.append(f"{way}update @perm_{proto} {{ ip daddr . {proto} sport }}")
    return lines


def _firewall(nat: Nat, ipv6: str) -> list[str]:
    lines = [
        "table inet fw {\nchain input {\ntype filter hook input priority filter; policy accept;",
        'iifname != "wan" accept',
        "ct state established,related accept",
        "meta l4proto { icmp, icmpv6 } accept",
        *STOPS[nat.unsolicited],
        "}\nchain forward {\ntype filter hook forward priority filter; policy drop;",
    ]
    if not nat.udp:
        lines.append("meta l4proto udp drop")
    lines.append("ct state established,related accept")
    if nat.egress == "tcp443":
        lines += ['iifname "lan" oifname "wan" tcp dport 443 accept', 'iifname "lan" oifname "wan" drop']
    lines += ['iifname "lan" accept', "ct status dnat accept"]
    if nat.mapping == "none" and nat.filtering == "eif":
        lines.append('iifname "wan" meta nfproto ipv4 accept')
    if ipv6 == "open":
        lines.append('iifname "wan" meta nfproto ipv6 accept')
    lines += STOPS["reject"] if nat.unsolicited == "reject" else ["drop"]
    return [*lines, "}\n}"]
