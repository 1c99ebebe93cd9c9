"""Jobs of real nodes: scripts that outlive who submitted them, and the node that ran them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lattica.node import paths
from tests.e2e.conftest import eventually
from tests.e2e.machines import Machine, see

SCRIPT = """
import os, sys, time
import helper
import lattica

lattica.init()

@lattica.remote
def doubled(x):
    return helper.doubled(x)

print("result", lattica.get([doubled.remote(i) for i in range(3)]), flush=True)
secret = os.path.join(os.environ["LATTICA_DATA_DIR"], "identity")
print("identity", os.listdir(secret) if os.path.isdir(secret) else "hidden", flush=True)
lattica.shutdown()
lattica.init()  # a job may have several sessions, one after another
print("again", lattica.get(doubled.remote(4)), flush=True)
os.makedirs("out", exist_ok=True)
with open("out/model.bin", "wb") as file:
    file.write(bytes(range(256)) * 2000)
os.symlink("/etc/passwd", "out/link")
if len(sys.argv) > 2:
    time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[1]))
"""


def write_project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "helper.py").write_text("def doubled(x): return 2 * x\n")
    (folder / "train.py").write_text(SCRIPT)
    return folder / "train.py"


def jobs(machine: Machine) -> list[dict[str, Any]]:
    return list(machine.ask("job_list"))


def output(machine: Machine, job: str) -> str:
    return machine.run("logs", job).stdout


def test_a_job_runs_with_its_modules_sees_no_key_and_ends_with_its_exit_code(
    machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    one = machine("one")
    one.start()
    script = write_project(tmp_path / "project")
    done = one.run("submit", str(script), "3")
    assert done.returncode == 3, done.stderr
    assert "result [0, 2, 4]\n" in done.stdout and "again 8\n" in done.stdout
    assert "identity hidden" in done.stdout, "where mounts are allowed, the folder is empty"
    [job] = jobs(one)
    assert (job["state"], job["exit_code"], job["restarts"]) == ("failed", 3, 0)
    assert one.run("logs", "train.py").stdout == done.stdout
    assert "no other node keeps the job's files" in done.stderr
    one.ok("job", "fetch", "train.py", "out/model.bin", str(tmp_path))
    assert (tmp_path / "model.bin").read_bytes() == bytes(range(256)) * 2000
    for path in ("out/link", "../job_runs", "/etc/passwd", "out", "none"):
        refused = one.run("job", "fetch", "train.py", path, str(tmp_path / "other"))
        assert refused.returncode == 1 and not (tmp_path / "other").exists(), path


def test_a_job_that_is_stopped_says_so_and_has_not_succeeded(machine: Callable[[str], Machine], tmp_path: Path) -> None:
    one = machine("one")
    one.start()
    job = json.loads(one.ok("submit", "--no-wait", "--json", str(write_project(tmp_path / "project")), "0", "60"))[
        "job"
    ]
    assert eventually(lambda: "again 8" in output(one, job))
    one.ok("job", "stop", job[:8])
    assert eventually(lambda: jobs(one)[0]["state"] == "stopped"), jobs(one)
    assert one.run("logs", "-f", job).returncode != 0


def test_a_job_goes_on_at_another_node_when_that_of_its_script_is_killed(
    machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    one, two = machine("one"), machine("two")
    one.start()
    two.start("join", one.ticket())
    see((one, ["two"]), (two, ["one"]))
    script = write_project(tmp_path / "project")
    job = json.loads(one.ok("submit", "--no-wait", "--json", "--on", "two", str(script), "0", "3"))["job"]
    assert eventually(lambda: jobs(one) and len(jobs(one)[0]["holders"]) == 2), "another node keeps its files"
    assert jobs(one)[0]["node_name"] == "two" and eventually(lambda: "again 8" in output(one, job))
    for path in (script, script.parent / "helper.py"):
        path.unlink()  # whoever goes on with it has it from the mesh
    os.kill(two.pid, signal.SIGKILL)
    done = one.run("logs", "-f", job)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("result [0, 2, 4]") == 1 and "restart 1 of 1" in done.stderr
    [row] = jobs(one)
    assert (row["node_name"], row["state"], row["restarts"]) == ("one", "succeeded", 1)
    paths.sweep_dead_node(str(two.data_dir))
    back = two.start()
    assert eventually(lambda: [row["state"] for row in jobs(two)] == ["succeeded"]), (back, jobs(two))


def test_a_job_goes_on_elsewhere_when_its_node_is_stopped(machine: Callable[[str], Machine], tmp_path: Path) -> None:
    one, two = machine("one"), machine("two")
    one.start()
    two.start("join", one.ticket())
    see((one, ["two"]), (two, ["one"]))
    script = write_project(tmp_path / "project")
    job = json.loads(one.ok("submit", "--no-wait", "--json", "--on", "two", str(script), "0", "2"))["job"]
    assert eventually(lambda: "again 8" in output(one, job))
    two.ok("stop")
    assert one.run("logs", "-f", job).returncode == 0
    assert (jobs(one)[0]["node_name"], jobs(one)[0]["restarts"]) == ("one", 1)


def test_a_job_goes_on_when_the_machine_of_whoever_submitted_it_is_lost(
    machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    one, two, laptop = machine("one"), machine("two"), machine("laptop")
    one.start()
    ticket = one.ticket()
    two.start("join", ticket)
    laptop.start("join", ticket)
    see((laptop, ["one", "two"]), (one, ["laptop", "two"]))
    script = write_project(tmp_path / "project")
    submitted = laptop.run("submit", "--no-wait", "--json", "--on", "two", str(script), "0", "8")
    job = json.loads(submitted.stdout)["job"]
    assert "no other node" not in submitted.stderr
    os.kill(laptop.pid, signal.SIGKILL)
    done = one.run("logs", "-f", job)
    assert done.returncode == 0 and "again 8" in done.stdout, done.stderr
    [row] = jobs(one)
    assert (row["node_name"], row["state"], row["restarts"]) == ("two", "succeeded", 0)


def test_submit_returns_when_another_node_keeps_the_files(machine: Callable[[str], Machine], tmp_path: Path) -> None:
    """The machine may be lost in the same moment."""
    one, two = machine("one"), machine("two")
    one.start()
    two.start("join", one.ticket())
    see((one, ["two"]), (two, ["one"]))
    script = write_project(tmp_path / "project")
    job = json.loads(one.ok("submit", "--no-wait", "--json", str(script), "0", "1"))["job"]
    os.kill(one.pid, signal.SIGKILL)
    done = two.run("logs", "-f", job)
    assert done.returncode == 0 and "again 8" in done.stdout, done.stderr
    [row] = jobs(two)
    assert (row["node_name"], row["state"], row["restarts"]) == ("two", "succeeded", 1)
