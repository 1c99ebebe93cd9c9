"""The boot of a writer's dots: a node's boot number with random bits behind it, above every one that it has used.

A node killed before its journal was on disk, restored from a backup or without its disk goes on above what it once
said. Two copies of one directory that start within the same second differ in the random bits, so neither is a liar.
"""

from __future__ import annotations

from lattica.errors import ConfigError
from lattica.mesh.table.rows import BOOT_BITS

_BOOT_MAX = (1 << 63) - 1  # what a row may hold


def next_writer_boot(stored: int, node_boot: int, random_bits: int) -> int:
    """The boot of a writer that starts now.

    stored: the highest one of its own rows on disk, 0 if there are none; node_boot: `Credentials.boot`; random_bits:
    thrown anew for each start, less than 2**BOOT_BITS. Where the stored one is ahead of the node's number, the boot
    after it has random bits too. Raises ConfigError when none is left.
    """
    assert 0 <= random_bits < 1 << BOOT_BITS, "random bits do not reach into the number"
    boot = node_boot << BOOT_BITS | random_bits
    if boot <= stored:
        boot = (stored >> BOOT_BITS) + 1 << BOOT_BITS | random_bits
    if boot > _BOOT_MAX:
        raise ConfigError("this node's key has signed the last boot that there is", do_next="give it a new key")
    return boot


def raised(boot: int, seen: int, random_bits: int) -> int:
    """The boot to write with after another peer has shown a valid row of ours with the boot `seen`: our own one, or a
    later one if something that had our key was ahead of us. Raises ConfigError when none is left."""
    return boot if seen <= boot else next_writer_boot(seen, boot >> BOOT_BITS, random_bits)
