"""`lattica start --install-service`: the unit, as it is shown and written."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.cli import service
from tests.cli.conftest import Lattica


def test_a_unit_is_shown_with_the_options_of_the_start(lattica: Lattica, data_dir: Path) -> None:
    words = (
        "--num-cpus",
        "8",
        "--labels",
        "site=home",
        "--resources",
        '{"tpu": 2}',
        "--grace",
        "2min",
        "--no-port-mapping",
    )
    unit = lattica("start", "--install-service", "--print", *words).output
    [line] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert f"start --block --data-dir {data_dir} --num-cpus 8 " in line
    assert r'"{\"tpu\": 2}"' in line and "--labels site=home" in line and "--grace 120" in line
    assert "--no-port-mapping" in line
    assert "TimeoutStopSec=155" in unit and "KillMode=mixed" in unit


def test_a_unit_is_written_and_nothing_is_started(
    lattica: Lattica, data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    result = lattica("start", "--install-service")
    path = Path(service.unit_path(str(data_dir)))
    assert result.exit_code == 0 and path.read_text() == lattica("start", "--install-service", "--print").output
    assert "systemctl --user enable --now " + path.name in result.output and "enable-linger" in result.output
    assert path.name.startswith("lattica-"), "another data directory has a unit of its own"
    assert list(data_dir.glob("*.json")) == []


def test_the_usual_data_directory_has_the_short_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert service.unit_name(str(tmp_path / "lattica")) == "lattica.service"


def test_a_ticket_does_not_go_into_a_unit(lattica: Lattica) -> None:
    result = lattica("start", "--install-service", "--ticket", "lat1secret")
    assert result.exit_code == 2 and "join` first" in result.output and "lat1secret" not in result.output


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("plain", "plain"), ("a b", '"a b"'), ("50%", "50%%"), ("$HOME", "$$HOME"), ('"', '"\\""'), ("", '""')],
)
def test_words_are_quoted_as_systemd_reads_them(word: str, quoted: str) -> None:
    assert service._quoted(word) == quoted
