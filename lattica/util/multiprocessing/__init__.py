"""`multiprocessing.Pool` over lattica: `from lattica.util.multiprocessing import Pool` in place of the standard one."""

from multiprocessing import JoinableQueue, TimeoutError

from lattica.util.multiprocessing.pool import Pool

__all__ = ["JoinableQueue", "Pool", "TimeoutError"]
