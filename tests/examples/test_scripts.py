"""The scripts directly in examples/, as a user runs them, only smaller."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 100.0  # a run here takes one or two seconds, but a machine can be busy

pytestmark = pytest.mark.e2e


def lines_of(script: str, *arguments: object) -> list[str]:
    """What a run prints."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_darts_give_pi_within_what_their_number_allows():
    *_, last = lines_of("monte_carlo_pi.py", "--samples", "2e6", "--tasks", 3)
    pi, error = map(float, re.findall(r"\d\.\d{6}", last))
    assert abs(pi - 3.14159265) < 5 * error < 0.05


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_parameter_server_learns_from_gradients_of_its_workers(mode):
    shares = [float(share) for line in lines_of("parameter_server.py", "--mode", mode, "--updates", 80)
              for share in re.findall(r"(\d+\.\d)%", line)]  # fmt: skip
    assert len(shares) == 5 and shares[0] < 15 and shares[-1] > 35, shares


def test_words_are_counted_as_one_process_would(tmp_path):
    text = "the cat and the hat\n" * 7000 + "a don't\n"
    (tmp_path / "book.txt").write_text(text)
    first, *counts = lines_of("word_count.py", tmp_path / "book.txt", "--top", 3)
    assert first == "35,002 words, 6 different ones, in 1 files and 3 pieces"
    assert [line.split() for line in counts] == [["14,000", "the"], ["7,000", "hat"], ["7,000", "cat"]]


def test_the_quick_start_shows_tasks_actors_objects_generators_and_a_retry():
    lines = dict(line.split(": ", 1) for line in lines_of("quickstart.py") if ": " in line)
    assert lines["squares"] == "[0, 1, 4, 9, 16]" and lines["their sum"] == "30"
    assert lines["counted"] == "[1, 3, 6]" and lines["countdown"] == "3 2 1"
    assert lines["a worker died"] == "finished by another worker"
