"""What people see: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import io

from lattica.launch.progress import BAD, BUSY, GOOD, progress_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_for_each_change() -> None:
    stream = io.StringIO()
    with progress_of(["a", "gpu-1"], stream) as progress:
        progress.tell("a", BUSY, "looks")
        progress.tell("a", BUSY, "looks")
        progress.tell("gpu-1", BAD, "no answer")
    assert stream.getvalue() == "a      looks\ngpu-1  failed: no answer\n"


def test_a_terminal_gets_a_row_for_each_host_with_its_last_word() -> None:
    stream = Terminal()
    with progress_of(["a", "b[1]", "c"], stream) as progress:
        progress.tell("a", BUSY, "looks")
        progress.tell("a", GOOD, "started")
        progress.tell("b[1]", BAD, "no [bold]answer")
    last = stream.getvalue()
    assert "started" in last and "no [bold]answer" in last and "b[1]" in last, "what hosts say is no markup"
    assert "✓" in last and "✗" in last
