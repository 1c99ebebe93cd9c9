"""Two processes with one key: a restart, or a directory that was copied?

    witness -> each of both  Prove(instance of the other)        -> witness  Proof(signature)
    witness -> the later one  Bye(twin, boot and instance of the earlier one, its proof)

A hello from another process while connections of the former live: both are asked to sign. If the former is silent, the
process was restarted. Else two live nodes have one key, and the later one stops, by (boot, instance).

It stops only if it is shown a signature, under its own key, of its own instance: of 8 bytes that nobody knew before it
started, and that it does not sign itself. Without that, any member could stop any node with one frame.
"""

from __future__ import annotations

from collections.abc import Callable

PURPOSE = b"lattica alive 1\0"
Process = tuple[int, bytes]
"""(boot, instance)"""
Sign = Callable[[bytes], bytes]
"""Ed25519: one key gives one signature of the same bytes (RFC 8032 §5.1.6), so its owner verifies by signing again."""


def statement(process: Process, challenge: bytes) -> bytes:
    """What `process` signs when it is shown the instance of another one."""
    boot, instance = process
    return PURPOSE + boot.to_bytes(8, "little") + bytes([len(instance)]) + instance + challenge


def is_later_twin(sign: Sign, mine: Process, theirs: Process, proof: bytes) -> bool:
    """Whether another process with our key lives, and was first."""
    return theirs < mine and len(theirs[1]) < 256 and proof == sign(statement(theirs, mine[1]))


class Inquiry:
    """What is known of a former and a new process of one key. due: when the former counts as silent."""

    __slots__ = ("_former_proof", "_new_proof", "due", "former", "new")

    def __init__(self, former: Process, new: Process, due: float) -> None:
        self.former, self.new, self.due = former, new, due
        self._former_proof: bytes | None = None
        self._new_proof: bytes | None = None

    def proved(self, signature: bytes, *, new: bool) -> None:
        """One of them has answered."""
        if new:
            self._new_proof = signature
        else:
            self._former_proof = signature

    @property
    def former_lives(self) -> bool:
        """Whether the former process has proven that it lives."""
        return self._former_proof is not None

    @property
    def verdict(self) -> tuple[bool, Process, bytes] | None:
        """(whether the new one must stop, who was first, its proof), once that is known."""
        if self._former_proof is None:
            return None
        if self.former < self.new:
            return True, self.former, self._former_proof
        return None if self._new_proof is None else (False, self.new, self._new_proof)
