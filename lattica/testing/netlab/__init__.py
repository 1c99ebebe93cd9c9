"""A network of NATs, bad links and partitions on one machine, for tests of programs that must live with them.

    from lattica.testing.netlab import Lab, Site, Host, Nat

    with Lab(public={"relay": Host(), "far": Host("80ms")},
             sites={"a": Site("port-restricted", hosts=2, wan="20ms 50mbit/10mbit loss 0.5%"),
                    "b": Site("symmetric", ipv6="stateful"),
                    "isp": Site("cgn", hosts=0),
                    "c": Site("full-cone hairpin", upstream="isp")}) as lab:      # double NAT
        lab.run("a1", ["lattica", "..."])     # like subprocess.run; popen likewise
        sock = lab.socket("b1")               # a socket of this process inside b1
        lab.probe("a1")                       # {'mapping': 'eim', 'filtering': 'apdf', ...}

A topology is a public segment (a router that is connected to nothing outside the lab), public hosts on it, and sites: a
gateway of a chosen NAT type with hosts on a LAN behind it. All of it lives in network namespaces called nl-LAB-NODE;
nothing in a lab reaches the machine's own network or is reached from it.

Needs root, iproute2 and nftables, and gcc for links with delay or loss; `python -m lattica.testing.netlab check` says
what is missing, and Lab raises Unavailable. docs/guide/network-lab.md has all of it.
"""

from .errors import LabError, Unavailable
from .lab import Lab
from .machine import check
from .topology import PRESETS, Host, Link, Nat, Site

__all__ = ["PRESETS", "Host", "Lab", "LabError", "Link", "Nat", "Site", "Unavailable", "check"]
