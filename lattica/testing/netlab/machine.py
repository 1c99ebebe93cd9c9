"""What this machine must have to run labs, tried out rather than guessed: root, ip, tc, nft, and the kernel's part."""

from __future__ import annotations

import functools
import os
import shutil
import sys

from .errors import APT, LabError, Unavailable
from .layout import PREFIX
from .namespaces import flush_conntrack, ip, nft, tool
from .natrules import gateway_rules
from .topology import Nat


def check() -> None:
    """Raise Unavailable, with what is missing, unless this machine can run labs. Tried once a process."""
    if found := _missing():
        message, do_next = found
        raise Unavailable(message, do_next=do_next)


@functools.cache
def _missing() -> tuple[str, str] | None:
    """(what is missing, what to do about it)."""
    if sys.platform != "linux":
        return "a network lab needs Linux", "run it in a virtual machine or a privileged container"
    if os.geteuid():
        return "a network lab needs root: it makes network namespaces", "run it with sudo"
    for name in ("ip", "tc", "nft"):
        if not shutil.which(name):
            return f"a network lab needs the program `{name}`", APT
    ns = f"{PREFIX}check{os.getpid()}"
    try:
        ip(None, [f"netns add {ns}"])
    except LabError as error:
        return f"a network lab cannot make a network namespace: {error.message}", "run it where root has CAP_SYS_ADMIN"
    try:
        ip(ns, ["link add va type veth peer name vb", "link add br0 type bridge", "link set lo up"])
        nft(ns, gateway_rules(Nat("eim", "adf", hairpin=True), "203.0.113.9", "none"))
        nft(ns, "table netdev x {\nchain c {\ntype filter hook ingress device va priority 0; policy drop;\n}\n}\n")
        limit = ["rate", "10mbit", "burst", "16kb", "latency", "50ms"]
        tool(ns, ["tc", "qdisc", "add", "dev", "va", "root", "tbf", *limit])
        flush_conntrack(ns)
    except (LabError, OSError) as error:
        first = str(error).splitlines()[0]
        return f"the kernel or its tools lack something that a network lab needs: {first}", APT
    finally:
        ip(None, [f"netns del {ns}"], check=False)
    return None
