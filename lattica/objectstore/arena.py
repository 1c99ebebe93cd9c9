"""The memory that all processes of a machine share: one memfd, made by the node, mapped by everybody.

Its size is the quota and never changes (sealed). It is a hole until the node backs a span, before the span is granted:
so no access to granted memory can end in SIGBUS. The kernel frees it all with the last process that has it.

Where a byte's time goes, measured on 2 cores of a Xeon with 260 MiB of L3 (GB/s): `posix_fallocate` 9, first populate 4
(it zeroes), later populates 12, copy into populated memory 9-11, first touch without populate 1.1. Huge pages are no
way out: for shared memory kernels have them switched off (`shmem_enabled` is `never`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from lattica.objectstore.suballocator import ALIGN_BYTES

Buffer = bytes | bytearray | memoryview
"""What lends its bytes; whatever else does so goes into a memoryview first."""

MADV_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it
STEP_BYTES = 32 << 20
"""Memory is asked of the kernel in such steps (8 ms each), so that other threads get the interpreter in between."""

NUMPY_FROM_BYTES = 1 << 20
"""From here on numpy copies, if the process has it: without the interpreter lock, which 100 us of copying may hold."""

TWO_THREADS_FROM_BYTES = 32 << 20
"""From here on two threads copy, each about half as long as one would: 32-100 MiB at 10 GB/s against 5.5."""

STREAMED_FROM_BYTES = 128 << 20
"""memcpy streams past the caches from about here on (glibc's threshold depends on their size), at 9 GB/s in one thread
and 17 in two. What is long enough is therefore cut into pieces no shorter than this, and what would be shorter by
halves stays whole."""


def _map(fd: int, size: int, prot: int) -> mmap.mmap:
    """The whole arena: addresses only, pages come when they are touched. Core dumps leave it out."""
    mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=prot)
    mapping.madvise(mmap.MADV_DONTDUMP)
    return mapping


class Arena:
    """The node's side: makes the memory, and asks the kernel for pages or gives them back."""

    def __init__(self, size_bytes: int) -> None:
        """size_bytes: the quota, a multiple of the granule."""
        self.size_bytes = size_bytes
        self.fd = os.memfd_create("lattica-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size_bytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._mapping = _map(self.fd, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE)

    def __repr__(self) -> str:
        return f"<Arena of {self.size_bytes >> 20} MiB, {self.backed_bytes >> 20} MiB backed>"

    @property
    def backed_bytes(self) -> int:
        """Memory that the kernel has given so far."""
        return os.fstat(self.fd).st_blocks * 512

    def back(self, offset: int, size: int) -> None:
        """Have the kernel give memory for this range, 9 GB/s; may run in a thread.

        Raises OSError (ENOSPC, ENOMEM) if there is none; what it had given for the range is given back then.
        """
        try:
            for at in range(offset, offset + size, STEP_BYTES):
                os.posix_fallocate(self.fd, at, min(STEP_BYTES, offset + size - at))
        except OSError:
            self.punch(offset, size)
            raise

    def punch(self, offset: int, size: int) -> None:
        """Give the memory of this range back: it reads as zeros, in all mappings, until it is backed again."""
        self._mapping.madvise(mmap.MADV_REMOVE, offset, size)

    def lend(self, offset: int, size: int, back: Callable[[], object]) -> memoryview:
        """The bytes in place, read-only; at least one. `back` is called when the last view of them is gone, by the
        thread that had it: a socket that still has to send them keeps them."""
        import ctypes

        base = (ctypes.c_ubyte * size).from_buffer(self._mapping, offset)
        weakref.finalize(base, back).atexit = False
        return memoryview(base).cast("B").toreadonly()

    def unmap(self, offset: int, size: int) -> None:
        """What was read of this range no longer counts as memory of this process. The bytes stay."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapping.madvise(mmap.MADV_DONTNEED, start, offset + size - start)

    def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        """Write buffers, one after another, into backed memory: 4 GB/s, and other threads run meanwhile. Costs this
        process no pages, as a mapping would, which is no faster when each page is written once. Raises OSError."""
        size = sum(len(part) for part in parts)
        written = os.pwritev(self.fd, parts, offset)
        if written != size:
            raise OSError(errno.ENOSPC, f"{written} of {size} bytes went into the object store")

    def copy_out(self, offset: int, size: int) -> bytes:
        """A copy of the bytes."""
        return os.pread(self.fd, size, offset)

    def close(self) -> None:
        """Let go of it. The others keep theirs, and so does whoever has a view."""
        with contextlib.suppress(BufferError):
            self._mapping.close()
        os.close(self.fd)


class ArenaMap:
    """A process's side: reads anywhere, writes into the spans that it was granted.

    Two mappings of the whole, one read-only, one writable: what the user gets is a view of the first, so that a stray
    write ends the one process that does it, and the second is handed out for spans of our own only.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        """fd: the arena's descriptor, ours from now on."""
        self._fd, self.size_bytes = fd, size_bytes
        self._close_fd = weakref.finalize(self, os.close, fd)  # refs outlive their session, and with them this map
        self._close_fd.atexit = False
        self._reading: memoryview | None = None
        self._writing: memoryview | None = None
        self._writable: mmap.mmap | None = None
        self._spans: dict[int, int] = {}  # offset -> size

    def __repr__(self) -> str:
        return f"<ArenaMap of {self.size_bytes >> 20} MiB, {len(self._spans)} spans of our own>"

    def read(self, offset: int, size: int) -> memoryview:
        """The bytes in place, read-only."""
        if self._reading is None:
            self._reading = memoryview(_map(self._fd, self.size_bytes, mmap.PROT_READ))
        return self._reading[offset : offset + size]

    def open_span(self, offset: int, size: int) -> None:
        """The span is ours to write: populate it, so that writing costs no faults. Raises OSError if memory is out."""
        if self._writable is None:
            self._writable = _map(self._fd, self.size_bytes, mmap.PROT_READ | mmap.PROT_WRITE)
            self._writing = memoryview(self._writable)
        self._spans[offset] = size
        for at in range(offset, offset + size, STEP_BYTES):
            try:
                self._writable.madvise(MADV_POPULATE_WRITE, at, min(STEP_BYTES, offset + size - at))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return  # a kernel before 5.14: pages come at the first touch

    def close_span(self, offset: int) -> None:
        """The span is no longer ours: unmap its pages, so that they no longer count as memory of this process."""
        assert self._writable is not None
        self._writable.madvise(mmap.MADV_DONTNEED, offset, self._spans.pop(offset))

    def write_view(self, offset: int, size: int) -> memoryview:
        """The bytes in place, writable: part of a span of ours."""
        assert self._writing is not None, "no span was opened yet"
        return self._writing[offset : offset + size]

    def copy_in(self, offset: int, parts: Iterable[Buffer]) -> None:
        """Copy contiguous buffers into a span of ours, from `offset` on, each to the next multiple of ALIGN_BYTES."""
        for part in parts:
            source = memoryview(part)
            if source.nbytes:
                copy(self.write_view(offset, source.nbytes), source.cast("B"))
                offset += -(-source.nbytes // ALIGN_BYTES) * ALIGN_BYTES

    def private(self, offset: int, size: int) -> memoryview:
        """The bytes, writable, over a mapping of its own: what is written there nobody else sees, and it costs memory
        by the page, when it is written. Unmapped when the last view is gone. Raises OSError if it cannot be mapped."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        return _map_private(self._fd, start, offset + size - start)[offset - start :]

    def private_at(self, address: int, size: int) -> memoryview | None:
        """`private` for bytes that numpy sees at `address`; None if that is not in what `read` has mapped."""
        if self._reading is None:
            return None
        import numpy as np

        base: int = np.frombuffer(self._reading, dtype=np.uint8).__array_interface__["data"][0]
        offset = address - base
        return self.private(offset, size) if 0 <= offset <= self.size_bytes - size else None

    def close(self) -> None:
        """Let go of it. What views are left keep their memory until they are gone."""
        self._reading = self._writing = self._writable = None
        self._spans.clear()
        self._close_fd()


def copy(target: memoryview, source: memoryview) -> None:
    """Copy bytes to as many bytes: with numpy, which lets other threads run meanwhile, where that is worth its call."""
    size = source.nbytes
    numpy = sys.modules.get("numpy") if size >= NUMPY_FROM_BYTES else None
    copyto, frombuffer = getattr(numpy, "copyto", None), getattr(numpy, "frombuffer", None)
    if copyto is None or frombuffer is None:  # absent, or half imported by another thread
        target[:] = source
        return
    to, of = frombuffer(target, dtype="u1"), frombuffer(source, dtype="u1")
    if size < TWO_THREADS_FROM_BYTES or STREAMED_FROM_BYTES <= size < 2 * STREAMED_FROM_BYTES:
        copyto(to, of)
        return
    step = -(-size // max(size // STREAMED_FROM_BYTES // 2 * 2, 2))
    pieces = iter(range(0, size, step))  # taken as they come: with a half each, one waits for whose core is shared

    def take() -> None:
        for at in pieces:
            copyto(to[at : at + step], of[at : at + step])

    helper = threading.Thread(target=take, name="lattica-copy", daemon=True)
    helper.start()
    try:
        take()
    finally:
        _join(helper)


def _join(helper: threading.Thread) -> None:
    """Wait for the helper whatever comes: an interrupted caller frees the region, and the next object lies there."""
    interrupt: BaseException | None = None
    while helper.is_alive():
        try:
            helper.join()
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


@cache
def _libc() -> Any:
    """mmap and munmap themselves: Python's `mmap` duplicates the descriptor, and a program may hold many tensors."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _map_private(fd: int, offset: int, size: int) -> memoryview:
    import ctypes

    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, offset)
    if address == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, f"mapping {size} bytes of the object store: {os.strerror(error)}")
    base = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(base, libc.munmap, address, size).atexit = False  # views may live longer than the interpreter
    return memoryview(base).cast("B")
