"""Tracebacks of user code as Python would have printed them there, without lattica's own frames."""

from __future__ import annotations

from lattica.errors.base import LatticaError

TYPE_CHECKING = False  # importing `typing` would cost more than this whole package
if TYPE_CHECKING:
    from traceback import TracebackException

REMOTE_TRACEBACK_MAX_CHARS = 65_536  # a get() chain quotes each inner traceback again; head and tail say enough

_PACKAGE = __file__.rpartition("/errors/")[0] + "/"
_RUNTIME_ROOMS = ("actors/", "codec/", "errors/", "mesh/", "node/", "objectstore/", "scheduler/")


def _is_runtime_frame(filename: str) -> bool:
    """Whether a frame is lattica's own machinery; `lattica.rl` and `lattica.util` are libraries, their frames stay."""
    inside = filename.removeprefix(_PACKAGE)
    return inside != filename and ("/" not in inside or inside.startswith(_RUNTIME_ROOMS))


def is_ours(error: BaseException) -> bool:
    """Whether lattica itself raised this to say something, and no code of the user's was on the way."""
    shown = error.__traceback__
    while shown is not None:
        if not _is_runtime_frame(shown.tb_frame.f_code.co_filename):
            return False
        shown = shown.tb_next
    return isinstance(error, LatticaError)


def _strip(shown: TracebackException, seen: set[int]) -> None:
    """Drop our frames from a traceback and from all it chains to; one that is only ours is a bug and stays whole."""
    if id(shown) in seen:
        return
    seen.add(id(shown))
    kept = [frame for frame in shown.stack if not _is_runtime_frame(frame.filename)]
    if kept:
        shown.stack[:] = kept
    for linked in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        if linked is not None:
            _strip(linked, seen)


def format_remote(exc: BaseException) -> str:
    """What Python would print of `exc` here, at most about REMOTE_TRACEBACK_MAX_CHARS of it."""
    from traceback import TracebackException

    shown = TracebackException.from_exception(exc, compact=True)
    _strip(shown, set())
    text = "".join(shown.format())
    if len(text) <= REMOTE_TRACEBACK_MAX_CHARS:
        return text
    half = REMOTE_TRACEBACK_MAX_CHARS // 2
    return f"{text[:half]}\n  ... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
