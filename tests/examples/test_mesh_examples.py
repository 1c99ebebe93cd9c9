"""The scripts of examples/mesh as a user runs them: both ends here, and one end here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")

MESH = Path(__file__).parents[2] / "examples" / "mesh"
TIMEOUT_S = 60.0  # a run here takes one to four seconds, but a machine can be busy
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Of numpy in each process: several that wait for each other by spinning take the cores from those that work."""

pytestmark = pytest.mark.e2e


def run(script, *arguments):
    """The finished process of a script."""
    command = [sys.executable, str(MESH / script), *map(str, arguments)]
    env = os.environ | ONE_THREAD
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_facts_are_told_and_asked_and_errors_and_roles_are_those_of_the_service():
    done = run("metadata.py")
    assert done.returncode == 0 and not done.stderr, done.stderr
    told, missing, refused, rate = done.stdout.splitlines()
    assert told == "large: {'layers': 48, 'dtype': 'bfloat16'}"
    assert missing == "huge: the registry raised KeyError" and refused == "forget: refused, it takes the role admin"
    assert re.fullmatch(r"1,000 questions at once: answered in \d+ ms", rate)


def test_a_slow_reader_of_tensors_stops_their_writer():
    done = run("tensor_stream.py")
    assert done.returncode == 0 and not done.stderr, done.stderr
    rate, slow = done.stdout.splitlines()
    assert re.fullmatch(r"128 tensors, 537 MB: \d+ MB/s", rate)
    made, still = map(int, re.findall(r"made (\d+), and (\d+) a while later", slow)[0])
    assert 5 <= made == still < 12, slow


def test_requests_in_flight_at_a_lost_shard_are_answered_by_the_other_one():
    done = run("sharded_inference.py")
    said = re.sub(r"member \w+ \(.*\) is dead\n", "", done.stderr)  # the one that is killed, where it is seen in time
    assert done.returncode == 0 and not said, done.stderr
    ended, summary = done.stdout.splitlines()
    counts = {pid: int(count) for count, pid in re.findall(r"(\d+) by the head of process (\d+)", summary)}
    assert summary.startswith("400 of 400 requests answered, all as by the whole model") and sum(counts.values()) == 400
    (lost,) = re.findall(r"process (\d+) is killed", ended)
    assert 50 < counts.pop(lost) < 200 and all(count > 200 for count in counts.values())


def test_one_end_prints_a_ticket_with_which_the_other_one_joins(tmp_path):
    command = [sys.executable, str(MESH / "metadata.py"), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        try:
            ticket = tmp_path / "ticket"
            ticket.write_text(serving.stdout.readline())
            done = run("metadata.py", "--ticket", ticket)
            assert done.returncode == 0, done.stderr
            assert "the registry raised KeyError" in done.stdout
        finally:
            serving.send_signal(signal.SIGINT)
        assert serving.wait(TIMEOUT_S) == 0, serving.stderr.read()


def test_the_programs_of_the_guide_do_what_it_says(tmp_path):
    text = (MESH.parents[1] / "docs" / "guide" / "mesh.md").read_text()
    store, ask = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import mesh" in block)
    (tmp_path / "store.py").write_text(
        store.replace('":7412"', '"127.0.0.1:0"').replace(")\n        await", ", flush=True)\n        await")
    )
    (tmp_path / "ask.py").write_text(ask)

    def begin(*command):
        return subprocess.Popen([sys.executable, *map(str, command)], cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    with begin(MESH / "metadata.py", "--listen", "127.0.0.1:0") as founder:  # its ticket gives `submit` and `store`
        try:
            (tmp_path / "ticket.txt").write_text(founder.stdout.readline())
            with begin("store.py") as serving:
                try:
                    printed = serving.stdout.readline().split()
                    with begin("ask.py", *printed) as asking:
                        assert asking.communicate(timeout=TIMEOUT_S)[0] == "1000000.0\n"
                finally:
                    serving.kill()
        finally:
            founder.terminate()


def test_a_cut_ticket_is_said_in_words():
    done = run("metadata.py", "--ticket", "lat1AAAA")
    assert done.returncode == 1
    assert "checksum" in done.stderr and "Traceback" not in done.stderr
