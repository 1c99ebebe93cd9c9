"""`RuntimeEnv` and `RuntimeEnvConfig`, where Ray has them; see `actors.runtime_env`."""

from lattica.actors.runtime_env import RuntimeEnv as RuntimeEnv
from lattica.actors.runtime_env import RuntimeEnvConfig as RuntimeEnvConfig

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]
