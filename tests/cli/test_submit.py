"""`lattica submit`, `job` and `logs`: what is handed to the node, and what is said of its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lattica.errors import ConfigError
from lattica.node.packages import Shelf
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

JOB = "3fa9c1d2" * 2
ANSWER: dict[str, Any] = {
    "job": JOB, "name": "train.py", "state": "succeeded", "node": "k" * 52, "node_name": "box", "run": 0, "of_run": 0,
    "restarts": 0, "max_restarts": 1, "submitted": 1.0, "began": 1.0, "ended": 2.0, "exit_code": 0,
    "how": "exit code 0", "data": b"hello\n", "offset": 6, "over": True, "trouble": "",
}  # fmt: skip


def project(folder: Path) -> Path:
    (folder / "project").mkdir()
    (folder / "project" / "train.py").write_text("import helper\n")
    (folder / "project" / "helper.py").write_text("")
    (folder / "project" / "notes.txt").write_text("")
    return folder / "project" / "train.py"


def test_a_script_is_handed_over_with_its_modules_and_followed_to_its_end(
    lattica: Lattica, node: FakeNode, data_dir: Path
) -> None:
    script = project(data_dir)
    node.mesh = {"job_submit": {"job": JOB, "node": "k" * 52}, "job_logs": ANSWER}
    result = lattica("submit", "--env", "A=b=c", str(script), "--epochs", "10", "--name", "x")
    assert result.exit_code == 0 and "hello\n" in result.output, result.output
    spec = node.asked("job_submit")["spec"]
    assert spec["words"] == ["--epochs", "10", "--name", "x"], "what stands behind the script is the script's"
    assert (spec["name"], spec["script"], spec["environ"]) == ("train.py", "train.py", {"A": "b=c"})
    assert Shelf(str(data_dir / "packages")).cids() == [spec["package"]]


def test_the_exit_code_is_the_scripts(lattica: Lattica, node: FakeNode, data_dir: Path) -> None:
    failed = ANSWER | {"state": "failed", "exit_code": 3, "how": "exit code 3"}
    node.mesh = {"job_submit": {"job": JOB, "node": "k" * 52}, "job_logs": failed}
    result = lattica("submit", str(project(data_dir)))
    assert result.exit_code == 3 and "job 3fa9c1d2 failed: exit code 3" in result.output
    node.mesh["job_logs"] = failed | {"state": "lost", "exit_code": None, "how": "its files are gone"}
    assert lattica("logs", "-f", JOB).exit_code == 1


def test_without_waiting_it_says_how_to_follow(lattica: Lattica, node: FakeNode, data_dir: Path) -> None:
    node.mesh = {"job_submit": {"job": JOB, "node": "k" * 52}}
    result = lattica("submit", "--no-wait", "--working-dir", str(project(data_dir).parent), "train.py")
    assert result.exit_code == 0 and "lattica logs -f 3fa9c1d2" in result.output


def test_a_script_that_is_not_there_or_not_in_its_folder_is_refused_before_anything_runs(
    lattica: Lattica, node: FakeNode, data_dir: Path
) -> None:
    script = project(data_dir)
    (data_dir / "other").mkdir()
    assert "there is no script nothing.py" in lattica("submit", "nothing.py").output
    assert "does not lie in" in lattica("submit", "--working-dir", str(data_dir / "other"), str(script)).output
    assert lattica("submit", "--env", "A", str(script)).exit_code == 2
    assert not [one for one in node.heard if getattr(one, "verb", "") == "job_submit"]


def test_jobs_are_listed_stopped_and_read(lattica: Lattica, node: FakeNode) -> None:
    node.mesh = {
        "job_list": [],
        "job_stop": ANSWER | {"state": "running"},
        "job_logs": ANSWER | {"data": b"", "offset": 0},
    }
    assert "lattica submit" in lattica("job", "list").output
    node.mesh["job_list"] = [ANSWER, {"job": "9" * 16}]
    page = lattica("job", "list").output
    assert "3fa9c1d2" in page and "succeeded (0)" in page and "box" in page and "99999999" in page
    node.mesh["job_list"] = [{"job": "9" * 16}]
    assert len(json.loads(lattica("job", "list", "--json").output)) == 1
    assert "is told to stop" in lattica("job", "stop", "train.py").output and node.asked("job_stop") == {
        "job": "train.py"
    }
    assert lattica("job", "logs", JOB).exit_code == 0 and lattica("logs", JOB).exit_code == 0
    node.mesh |= {"job_logs": ConfigError("no job is called 'x'"), "logs_find": []}
    assert "neither a job, nor an actor or worker that lives" in lattica("logs", "x").output
