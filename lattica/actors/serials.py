"""The rest of the ids that one process makes: they grow, by steps that nobody can foresee.

Who was lent one object of a process knows its token and one number. With steps of one it would know the next object's
id too; so the next is one of STEP_MAX, and a node answers few who guess (`node.guesses`). Steps cost nothing of the 48
bits that there are: after SPARSE numbers they are one, and 2^47 numbers are left.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from itertools import accumulate, chain, repeat

STEP_MAX = (1 << 16) - 1
SPARSE = 1 << 31  # with steps of 2^15 on average: 2^46 numbers; at 100,000 calls a second these are six hours
BLOCK = 1 << 12  # steps drawn at once; 8 KiB


def serials(draw: Callable[[int], bytes] = os.urandom) -> Callable[[], int]:
    """Numbers from 1, each called for once, from any thread. draw: so many random bytes.

    Only C code runs for a number, but for one in BLOCK, whose thread draws a block; two threads that do so at once lose
    one, and no number comes twice: the sum is formed after the step is drawn.
    """

    def block(_: None) -> list[int]:
        return list(filter(None, array("H", draw(2 * BLOCK))))  # a step of 0 would make a number twice

    sparse = chain.from_iterable(map(block, repeat(None, SPARSE // BLOCK)))
    return accumulate(chain(sparse, repeat(1))).__next__
