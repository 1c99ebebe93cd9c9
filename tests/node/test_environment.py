"""What a job's workers have around them: what is refused, what is laid out, who deletes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lattica.codec import far
from lattica.errors import ConfigError
from lattica.node import environment, paths
from lattica.node.environment import Folder, here_of, make
from lattica.node.far_environment import script_folder
from lattica.node.packages import Shelf
from lattica.scheduler.environments import Environment, Travels


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_variables_alone_need_no_folder(temporary: Path) -> None:
    assert make({"env_vars": {"A": "b"}, "config": {"eager_install": True}}, {}) == (Environment({"A": "b"}), None)
    assert make(None, {}) == (Environment(), None)


def test_folders_are_laid_out_and_go_with_the_last_who_holds_them(temporary: Path) -> None:
    project, models = temporary / "project", temporary / "lib" / "models"
    models.mkdir(parents=True)
    project.mkdir()
    (project / "config.txt").write_text("x")
    (models / "__init__.py").write_text("")
    made, folder = make({"working_dir": str(project), "py_modules": [str(models)]}, {})
    assert folder is not None and made.shelf == folder.path
    assert Path(made.cwd(), "config.txt").read_text() == "x"
    assert [Path(path, "models", "__init__.py").exists() for path in made.paths()] == [False, True]
    assert set(Shelf(made.shelf).cids()) == {package.cid for package in made.packages}
    assert here_of(made, paths.embedded_sessions()) is made
    node = Folder(folder.path)
    paths.open_session(paths.embedded_sessions(), keep=0).close(remove=True)  # sweeps what nobody holds
    folder.close()
    assert Path(made.cwd()).exists(), "its node still needs it"
    node.close()
    assert not Path(made.shelf).exists()


def test_a_node_believes_no_folder_elsewhere(temporary: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of a driver"):
        here_of(Environment(shelf="/root/.ssh"), paths.embedded_sessions())
    with pytest.raises(ConfigError, match="cannot be understood"):
        here_of(Environment(packages=[Travels("working_dir", "x", "relative")]), paths.embedded_sessions())


def test_workers_of_a_submitted_job_have_its_folder_and_variables(temporary: Path) -> None:
    said = {"package": "bafk", "folder": "/there", "variables": ["A", "GONE"]}
    environ = {environment.JOB_VARIABLE: json.dumps(said), "A": "b", "C": "d"}
    made, folder = make(None, environ)
    assert (made.env_vars, made.cwd(), folder) == ({"A": "b"}, "/there", None)
    assert make(None, {environment.JOB_VARIABLE: "damaged"}) == (Environment(), None)


@pytest.mark.parametrize(
    ("script", "front", "folder"),
    [
        ("/home/u/train.py", "/home/u", "/home/u"),
        ("train.py", "/home/u", "/home/u"),
        ("/home/u/package/module.py", "/home/u", "/home/u"),
        ("/home/u/train.py", "", "/home/u"),
        ("/home/u/train.py", "/elsewhere", "/home/u"),
        ("/usr/bin/pytest", "/usr/bin", ""),
        ("-c", "", ""),
        ("", "", ""),
    ],
)
def test_where_the_modules_of_a_driver_lie(script: str, front: str, folder: str) -> None:
    paper = far.JobIs(b"", b"", b"", sys_path=[front, "/lib"], cwd="/home/u", script=script)
    assert script_folder(paper) == folder
