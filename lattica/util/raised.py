"""What a task raised, as its author knows it: for libraries whose users expect plain exceptions, not `TaskError`."""

from __future__ import annotations

from lattica.errors import TaskError


def plain(error: BaseException) -> BaseException:
    """The exception object that the user's code raised, whose cause is the TaskError with the far traceback; `error`
    itself if it is no TaskError, or the object could not travel."""
    if not isinstance(error, TaskError):
        return error
    cause = error.cause
    if cause is None:
        return error
    if cause.__cause__ is None:  # a chain of the user's own stays; its text is in the TaskError as well
        cause.__cause__ = error
    return cause
