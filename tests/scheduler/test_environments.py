"""What workers have around them, as values: what is refused, how a task's lies over its caller's, how it is known."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.runtime_env import RuntimeEnv, RuntimeEnvConfig
from lattica.scheduler.environments import (
    NOTHING,
    PY_MODULE,
    WORKING_DIR,
    Environment,
    Installs,
    Travels,
    Wanted,
    at_load,
    decode,
    decode_installs,
    described,
    encode,
    expanded,
    key_of,
    merged,
    plain,
    read,
    variant_of,
)

FOLDER, OTHER = Travels(WORKING_DIR, "cid1", "/here/1"), Travels(WORKING_DIR, "cid2", "/here/2")
MODULE = Travels(PY_MODULE, "cid3", "/here/3")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"env_vars": {"A": 1}}, "must be a dict of strings, and 'A' is int"),
        ({"env_vars": ["A"]}, "must be a dict of strings, not list"),
        ({"env_vars": {"A=B": "1"}}, "no variable can have"),
        ({"env_vars": {"A": "1" * 70_000}}, "more than 65536 characters"),
        ({"py_modules": "models"}, "must be a list"),
        ({"working_dir": 3}, "must be the path of a folder"),
        ({"working_dir": "https://x.org/y.zip"}, "is no folder of this machine"),
        ({"excludes": "*.csv"}, "must be a list of patterns"),
        ({"pip": 3}, "a list, a file of requirements, or a dict"),
        ({"pip": [3]}, "must be a list of strings"),
        ({"pip": ["a\n--pre"]}, "one that is no line"),
        ({"pip": ["x"] * 1001}, "more than 1000"),
        ({"pip": {"packages": ["a"], "pip_chek": True}}, "it takes packages, pip_check, pip_version, pip_install_opt"),
        ({"pip": {"pip_check": True}}, "names no packages"),
        ({"uv": {"packages": ["a"], "uv_check": 1}}, "must be True or False"),
        ({"pip": "/no/such/file.txt"}, "cannot be read"),
        ({"pip": ["a"], "uv": ["b"]}, "both 'pip' and 'uv'"),
        ({"config": {"setup_timeout_seconds": 0}}, "must be seconds, or -1"),
        ({"conda": "x"}, "start the node inside that conda environment"),
        ({"image_uri": "x"}, "start the node inside the container"),
        ({"working_dri": "."}, "say working_dir; it takes env_vars, working_dir, py_modules, "),
        (["pip"], "must be a dict, not list"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_to_do(given: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        plain(given)


def test_what_says_nothing_is_nothing_and_plain_is_plain_already(tmp_path: Path) -> None:
    assert plain({"pip": [], "env_vars": {}, "conda": None, "excludes": []}) == {}
    (tmp_path / "requirements.txt").write_text("numpy>=2\n\n# for the net\ntorch\nnumpy>=2\n")
    found = plain({"pip": str(tmp_path / "requirements.txt"), "working_dir": tmp_path})
    assert found == {"pip": {"packages": ["numpy>=2", "torch"], "pip_check": False}, "working_dir": str(tmp_path)}
    assert plain(found) == found


def test_a_file_of_requirements_travels_with_those_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text("numpy\n-r more/one.txt\n--constraint=pins.txt\n")
    (tmp_path / "more" / "one.txt").write_text("torch\n-r two.txt\n")
    (tmp_path / "more" / "two.txt").write_text("--pre\nscipy")
    found = plain({"uv": {"packages": str(tmp_path / "requirements.txt")}})["uv"]["packages"]
    assert found == ["numpy", "torch", "--pre", "scipy", f"-c {tmp_path / 'pins.txt'}"]
    (tmp_path / "more" / "two.txt").write_text("-r one.txt")
    with pytest.raises(ConfigError, match="names itself"):
        plain({"pip": str(tmp_path / "requirements.txt")})


def test_requirements_are_said_in_a_list_or_a_dict() -> None:
    said = {"packages": ["a", "b"], "pip_check": True, "pip_version": "==24.0", "pip_install_options": ["--pre"]}
    assert read({"pip": said}).installs == Installs("pip", ("a", "b"), "==24.0", ("--pre",), True)
    assert read({"uv": ["a"]}).installs == Installs("uv", ("a",))
    assert read({"config": {"setup_timeout_seconds": -1}}).timeout_s == -1
    assert "secret" not in repr(Environment(installs=read({"pip": ["--find-links https://me:secret@x"]}).installs))


def test_variables_are_merged_one_by_one_and_other_fields_are_replaced() -> None:
    """As of tasks in Ray: the child's lie over the parent's."""
    parent = Environment({"A": "1", "B": "1"}, [FOLDER, MODULE], "/shelf", Installs("pip", ("x",)), 5.0)
    child = merged(parent, Wanted({"B": "2", "C": "2"}))
    assert child == Environment({"A": "1", "B": "2", "C": "2"}, [FOLDER, MODULE], "/shelf", parent.installs, 5.0)
    child = merged(parent, read({"working_dir": "/x", "pip": ["y"]}), [OTHER], "/shelf2")
    assert (
        child.packages == [OTHER, MODULE]
        and child.installs == Installs("pip", ("y",))
        and child.env_vars == parent.env_vars
    )
    assert merged(parent, read({"py_modules": []})).packages == [FOLDER]
    assert merged(parent, read({})) == parent and merged(NOTHING, read({"uv": ["z"]})).installs == Installs(
        "uv", ("z",)
    )


def test_what_comes_together_is_bounded() -> None:
    with pytest.raises(ConfigError, match="more than 65536 characters"):
        merged(Environment({"A": "1" * 40_000}), Wanted({"B": "1" * 40_000}))
    with pytest.raises(ConfigError, match="33 folders and modules"):
        merged(Environment(packages=[FOLDER]), Wanted(), [Travels(PY_MODULE, str(n)) for n in range(32)])


def test_environments_are_known_by_their_content_alone() -> None:
    one = Environment({"A": "1", "B": "2"}, [FOLDER], "/shelf", Installs("pip", ("x",)), 5.0)
    same = Environment({"B": "2", "A": "1"}, [Travels(WORKING_DIR, "cid1", "/there")], "", Installs("pip", ("x",)), 9.0)
    assert key_of(one) == key_of(same) and len(key_of(one)) == 16
    others = [
        NOTHING,
        merged(one, Wanted({"A": "2"})),
        merged(one, read({"pip": ["y"]})),
        merged(one, Wanted(), [MODULE]),
    ]
    assert len({key_of(each) for each in (one, *others)}) == 5
    assert variant_of(b"a", key_of(one)) == variant_of(b"a", key_of(same)) != variant_of(b"b", key_of(one))


def test_a_node_reads_what_it_is_told_within_bounds() -> None:
    one = Environment({"A": "1"}, [FOLDER], "/shelf", Installs("pip", ("x",)), 5.0)
    assert decode(encode(one)) == one and decode_installs(encode(Installs("uv", ("x",)))) == Installs("uv", ("x",))
    assert decode_installs(b"") is None
    for data in (b"", b"\xc1", encode(one)[:-3], bytes(1 << 20), encode(Environment({"A=B": ""}))):
        with pytest.raises(RemoteProtocolError):
            decode(data)
    for installs in (Installs("conda", ("x",)), Installs("pip", ("x" * 5000,)), Installs("pip", ("x",) * 1001)):
        with pytest.raises(RemoteProtocolError):
            decode_installs(encode(installs))


def test_what_a_process_has_is_told_as_a_runtime_env_again() -> None:
    given = {
        "env_vars": {"A": "1"},
        "pip": {"packages": ["x"], "pip_check": False},
        "config": {"setup_timeout_seconds": 5.0},
    }
    assert described(merged(NOTHING, read(given))) == given
    assert described(Environment(packages=[FOLDER, MODULE])) == {"working_dir": "/here/1", "py_modules": ["/here/3"]}
    assert described(NOTHING) == {}


def test_variables_name_others_that_stand_around_or_before_them() -> None:
    given = {"PATH": "${PATH}:/x", "B": "$A-${GONE}-$GONE", "C": "${B}!"}
    assert expanded(given, {"PATH": "/bin", "A": "a"}) == {"PATH": "/bin:/x", "B": "a--$GONE", "C": "a--$GONE!"}


def test_variables_that_act_when_a_program_is_loaded_are_told_from_the_others() -> None:
    given = {
        "HOME": "/h",
        "LD_LIBRARY_PATH": "${LD_LIBRARY_PATH}:${HOME}/lib",
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": "/x",
    }
    assert at_load(given, {"LD_LIBRARY_PATH": "/lib"}) == {"LD_LIBRARY_PATH": "/lib:/h/lib", "PYTHONHASHSEED": "7"}
    assert at_load({"HOME": "/h"}, {}) == {}


def test_the_class_of_ray_checks_its_fields_when_they_are_set() -> None:
    made = RuntimeEnv(pip=["numpy"], env_vars={"A": "b"}, config=RuntimeEnvConfig(setup_timeout_seconds=60))
    assert made["pip"] == {"packages": ["numpy"], "pip_check": False} and made.has_pip() and not made.has_uv()
    made["working_dir"] = "/x"
    made.set("env_vars", {"A": "c"})
    assert made.env_vars() == {"A": "c"} and made.working_dir() == "/x" and made.has_working_dir()
    assert RuntimeEnv.deserialize(made.serialize()) == made == pickle.loads(pickle.dumps(made)) == made.to_dict()
    assert read(made) == read(dict(made)) and read(made).timeout_s == 60
    with pytest.raises(ConfigError, match="dict of strings"):
        made["env_vars"] = {"A": 1}
    with pytest.raises(ConfigError, match="no field 'pipp'"):
        RuntimeEnv(pipp=["numpy"])
    with pytest.raises(ConfigError, match="must be seconds"):
        RuntimeEnvConfig(setup_timeout_seconds=0)
    assert RuntimeEnv() == {} and RuntimeEnvConfig.default_config()["eager_install"] is True
