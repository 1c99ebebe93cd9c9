"""At which address of this machine others would reach it."""

from __future__ import annotations

import socket

OUTSIDE = ("8.8.8.8", 53)  # any address of the world would do: nothing is sent
LOOPBACK = "127.0.0.1"


def get_node_ip_address(address: str | None = None) -> str:
    """The address from which a packet to the world would leave, or to `address` ("host:port"); 127.0.0.1 without a
    network. A machine behind a router is not reached at it from outside.

    A peer of the mesh is better named by its id: see `lattica.nodes()`.
    """
    host, _, port = address.rpartition(":") if address else ("", "", "")
    target = (host, int(port)) if host else OUTSIDE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:
            return LOOPBACK
        return str(probe.getsockname()[0])


__all__ = ["get_node_ip_address"]
