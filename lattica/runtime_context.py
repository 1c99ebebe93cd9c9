"""Where Ray has them: `lattica.runtime_context.RuntimeContext`, for annotations."""

from __future__ import annotations

import lattica.session  # noqa: F401  # the first use starts a session
from lattica.actors.context import RuntimeContext, get_runtime_context

__all__ = ["RuntimeContext", "get_runtime_context"]
