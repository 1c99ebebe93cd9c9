"""`RuntimeEnv` and `RuntimeEnvConfig`, as Ray has them: a `runtime_env` that is checked when it is made.

    from lattica.runtime_env import RuntimeEnv

    lattica.init(runtime_env=RuntimeEnv(pip=["numpy==2.1.0"], env_vars={"MODE": "fast"}))

Plain dicts do as well, everywhere. docs/guide/environments.md tells what each field means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from lattica.scheduler import environments as pure


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is made: `setup_timeout_seconds` (-1: any time), and whether what a job needs is installed at
    `init` (`eager_install`). log_files: Ray's; without a meaning here."""

    known_fields = frozenset({"setup_timeout_seconds", "eager_install", "log_files"})

    def __init__(
        self,
        setup_timeout_seconds: int = int(pure.TIMEOUT_S),
        eager_install: bool = True,
        log_files: list[str] | None = None,
    ) -> None:
        """Raises ConfigError."""
        given = {"setup_timeout_seconds": setup_timeout_seconds, "eager_install": eager_install}
        super().__init__(pure.parse_config(given), log_files=list(log_files or []))

    @staticmethod
    def parse_and_validate_runtime_env_config(config: Mapping[str, Any] | RuntimeEnvConfig) -> RuntimeEnvConfig:
        """From a dict; what it does not say has Ray's defaults. Raises ConfigError."""
        if isinstance(config, RuntimeEnvConfig):
            return config
        pure.parse_config(config)
        return RuntimeEnvConfig(**{name: config[name] for name in RuntimeEnvConfig.known_fields if name in config})

    @classmethod
    def default_config(cls) -> RuntimeEnvConfig:
        """Ray's defaults."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """As a plain dict."""
        return dict(self)


class RuntimeEnv(dict[str, Any]):
    """What tasks, actors or all workers of a job have around them; a dict whose fields are checked as they are set.

    working_dir: a folder, or a zip file; the workers' working directory is a copy of it.
    py_modules: folders, files, modules or wheels that they can import.
    pip, uv: a list of requirements, a file of them, or a dict with "packages".
    env_vars: variables, set before user code is imported; "${PATH}:/x" names others.
    excludes (in kwargs): patterns, as in a .gitignore file, of what does not travel.
    config: a dict or a RuntimeEnvConfig.

    Raises ConfigError (a ValueError) for what cannot be had: conda, containers and the like, with what to do instead.
    """

    known_fields = frozenset(pure.KEYS)

    def __init__(
        self,
        *,
        py_modules: Sequence[Any] | None = None,
        py_executable: str | None = None,
        working_dir: str | None = None,
        pip: Any = None,
        conda: Any = None,
        container: Any = None,
        env_vars: Mapping[str, str] | None = None,
        worker_process_setup_hook: Any = None,
        nsight: Any = None,
        rocprof_sys: Any = None,
        config: Mapping[str, Any] | None = None,
        _validate: bool = True,
        image_uri: str | None = None,
        uv: Any = None,
        **kwargs: Any,
    ) -> None:
        given = kwargs | {
            "py_modules": py_modules,
            "py_executable": py_executable,
            "working_dir": working_dir,
            "pip": pip,
            "conda": conda,
            "container": container,
            "env_vars": env_vars,
            "worker_process_setup_hook": worker_process_setup_hook,
            "_nsight": nsight,
            "_rocprof_sys": rocprof_sys,
            "config": config,
            "image_uri": image_uri,
            "uv": uv,
        }
        said = {name: value for name, value in given.items() if value is not None}
        super().__init__(pure.plain(said) if _validate else said)

    def __setitem__(self, name: str, value: Any) -> None:
        checked = pure.plain({**{key: self[key] for key in self if key != name}, name: value})
        if name in checked:
            super().__setitem__(name, checked[name])

    def set(self, name: str, value: Any) -> None:
        """The same as `environment[name] = value`."""
        self[name] = value

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> RuntimeEnv:
        """What `serialize` has made."""
        return cls(_validate=False, **json.loads(serialized_runtime_env))

    def serialize(self) -> str:
        """As JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """As a plain dict."""
        return deepcopy(dict(self))

    def has_working_dir(self) -> bool:
        """Whether it names one."""
        return self.get("working_dir") is not None

    def working_dir(self) -> str:
        """It; "" if there is none."""
        return str(self.get("working_dir", ""))

    def working_dir_uri(self) -> str | None:
        """It; None if there is none."""
        return self.get("working_dir")

    def py_modules(self) -> list[Any]:
        """Those that it names."""
        return list(self.get("py_modules", ()))

    def py_modules_uris(self) -> list[Any]:
        """The same."""
        return self.py_modules()

    def env_vars(self) -> dict[str, str]:
        """Those that it sets."""
        return dict(self.get("env_vars", {}))

    def has_pip(self) -> bool:
        """Whether pip installs something for it."""
        return bool(self.get("pip"))

    def pip_config(self) -> dict[str, Any]:
        """What pip installs, as a dict."""
        return dict(self.get("pip") or {})

    def has_uv(self) -> bool:
        """Whether uv installs something for it."""
        return bool(self.get("uv"))

    def uv_config(self) -> dict[str, Any]:
        """What uv installs, as a dict."""
        return dict(self.get("uv") or {})

    def has_conda(self) -> bool:
        """No."""
        return False

    def has_py_container(self) -> bool:
        """No."""
        return False
