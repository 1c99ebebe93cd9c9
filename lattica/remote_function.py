"""Where Ray has it: `lattica.remote_function.RemoteFunction`, for annotations and `isinstance`."""

from __future__ import annotations

import lattica.session  # noqa: F401  # the first use starts a session
from lattica.actors.remote import RemoteFunction

__all__ = ["RemoteFunction"]
