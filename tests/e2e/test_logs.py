"""What workers print: in files of the session, and prefixed before the driver's eyes, to the last line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lattica.codec.messages import LogLines
from lattica.session import _Printer
from tests.e2e.conftest import Script

PRINTER = """
import logging, os, subprocess, sys, time, lattica
session = lattica.init(num_cpus=2, log_to_driver={log_to_driver})

@lattica.remote
def speak(words):
    print("out", words)
    print("err", words, file=sys.stderr)
    print("no newline", end="")
    return os.getpid()

@lattica.remote
class Speaker:
    def speak(self, count):
        for k in range(count):
            print("line", k)
    def shell(self):
        subprocess.run(["echo", "from a subprocess"], check=True)
        logging.getLogger("mine").warning("a warning")

pid = lattica.get(speak.remote("ä word"))
speaker = Speaker.options(name="loud").remote()
lattica.get(speaker.speak.remote(2000))
lattica.get(speaker.shell.remote())
logs = os.path.join(session.address_info["session_dir"], "logs")
end = time.monotonic() + 10  # the node writes what it hears: a busy one a moment after the task has ended
while True:
    names = sorted(os.listdir(logs))
    text = "".join(open(os.path.join(logs, name)).read() for name in names)
    if text.count("line ") >= 2000 or time.monotonic() > end:
        break
    time.sleep(0.01)
print("files", len(names), "out ä word" in text, "err ä word" in text, text.count("line "), flush=True)
print("pid", pid, flush=True)
"""


def test_worker_output_reaches_the_driver_prefixed_by_whole_lines_to_the_last_one(script: Script) -> None:
    process = script.start(PRINTER.format(log_to_driver=True))
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    pid = re.search(r"^pid (\d+)$", out, re.MULTILINE)[1]
    assert f"(speak pid={pid}) out ä word\n" in out
    assert f"(speak pid={pid}) err ä word\n" in err
    assert f"(speak pid={pid}) no newline\n" in out, "a line without an end is shown at shutdown"
    assert [int(k) for k in re.findall(r"^\(Speaker pid=\d+\) line (\d+)$", out, re.MULTILINE)] == list(range(2000))
    assert re.search(r"^\(Speaker pid=\d+\) from a subprocess$", out, re.MULTILINE)
    assert re.search(r"^\(Speaker pid=\d+\) a warning$", err, re.MULTILINE)
    assert "True True 2000" in out, "the session's files have it too"


def test_a_driver_that_wants_no_lines_gets_none_and_the_files_have_them(script: Script) -> None:
    process = script.start(PRINTER.format(log_to_driver=False))
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "(speak" not in out + err and "line 5" not in out
    assert "True True 2000" in out


def test_the_last_words_before_shutdown_arrive(script: Script) -> None:
    """The driver ends right after the last print, several workers speak at once, and no line is cut or lost."""
    process = script.start("""
import lattica
lattica.init(num_cpus=4)

@lattica.remote
def speak(who):
    for k in range(300):
        print(f"{who}:{k}:" + "x" * 100)

lattica.get([speak.remote(who) for who in range(4)])
""")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    lines = re.findall(r"^\(speak pid=\d+\) (\d):(\d+):x{100}$", out, re.MULTILINE)
    assert len(lines) == 1200 == len(out.splitlines())
    for who in "0123":
        assert [int(k) for w, k in lines if w == who] == list(range(300))


def test_lines_are_shown_in_their_order_whichever_thread_is_quicker(capsys: pytest.CaptureFixture[str]) -> None:
    """Two threads heard a batch each; the second comes to the printer first."""
    printer = _Printer()
    shows = [printer.take(LogLines("task", 7, 1, [word])) for word in ("first", "second")]
    for show in reversed(shows):
        show()
    assert capsys.readouterr().out == "(task pid=7) first\n(task pid=7) second\n"


def test_output_of_tasks_that_nobody_waits_for_is_shown_when_the_driver_ends(script: Script) -> None:
    process = script.start("""
import lattica, time
lattica.init(num_cpus=1)

@lattica.remote
def speak():
    print("spoken")
    time.sleep(60)

speak.remote()
time.sleep(0.3)
""")
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert re.fullmatch(r"\(speak pid=\d+\) spoken\n", out)


@pytest.mark.parametrize("how", ["closed", "full"])
def test_a_driver_whose_own_output_is_gone_goes_on(script: Script, how: str, tmp_path: Path) -> None:
    target = "/dev/full" if how == "full" else "/dev/null"
    with open(target, "w") as sink:
        process = script.start(
            f"""
import os, sys, lattica
lattica.init(num_cpus=1)
if {how == "closed"}:
    sys.stdout.close()
lattica.get(lattica.remote(lambda: print("into the void")).remote())
value = lattica.get(lattica.remote(lambda: 5).remote())
lattica.shutdown()
open({str(tmp_path / "done")!r}, "w").write(str(value))
os._exit(0)
""",
            stdout=sink,
        )
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert (tmp_path / "done").read_text() == "5"
