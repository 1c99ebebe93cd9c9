"""Metrics as text: names, labels, and what is answered to whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lattica.node import metrics


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(_: Any) -> Iterator[tuple[str, str, str, list[metrics.Sample]]]:
        yield "tasks", "gauge", "Tasks.", [({"state": 'a "b"\n\\c'}, 2.0), ({}, 0.5)]

    monkeypatch.setattr(metrics, "_metrics", some)


def test_names_and_labels_are_written_as_prometheus_reads_them() -> None:
    assert metrics.text(None) == (  # type: ignore[arg-type]
        "# HELP lattica_tasks Tasks.\n# TYPE lattica_tasks gauge\n"
        'lattica_tasks{state="a \\"b\\"\\n\\\\c"} 2\nlattica_tasks 0.5\n'
    )


@pytest.mark.parametrize(
    ("line", "status", "has_body"),
    [
        (b"GET /metrics HTTP/1.1", b"200", True),
        (b"GET /metrics?x=1 HTTP/1.1", b"200", True),
        (b"HEAD /metrics HTTP/1.1", b"200", False),
        (b"GET /secrets HTTP/1.1", b"404", True),
        (b"POST /metrics HTTP/1.1", b"405", True),
        (b"\x16\x03\x01", b"405", True),
    ],
)
def test_only_metrics_are_answered(line: bytes, status: bytes, has_body: bool) -> None:
    head, _, body = metrics.respond(None, line + b"\r\n\r\n").partition(b"\r\n\r\n")  # type: ignore[arg-type]
    assert head.split(b" ")[1] == status and bool(body) == has_body
    if has_body:
        assert f"Content-Length: {len(body)}".encode() in head
