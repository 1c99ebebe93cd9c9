"""GPUs, from injected readings."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.node import gpus


@pytest.mark.parametrize(
    ("visible", "present", "devices"),
    [
        (None, 2, ("0", "1")),
        (None, 0, ()),
        ("", 2, ()),
        ("-1", 2, ()),
        ("NoDevFiles", 2, ()),
        ("1", 2, ("1",)),
        (" 1 , 0 ", 2, ("1", "0")),
        ("0,5,1", 2, ("0",)),
        ("0,-1,1", 2, ("0",)),
        ("0,0", 2, ()),
        ("all", 2, ()),
        ("0", 0, ()),
        ("GPU-8932f937,MIG-ab", 2, ("GPU-8932f937", "MIG-ab")),
        ("GPU-8932f937", 0, ()),
    ],
)
def test_the_gpus_are_those_that_cuda_would_show(visible: str | None, present: int, devices: tuple[str, ...]) -> None:
    assert gpus.devices_of(visible, present) == devices


def test_a_container_has_the_gpus_it_was_given_not_those_of_its_host() -> None:
    assert gpus.count_present(["null", "nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-caps"], 8) == 2


def test_gpus_count_before_anything_has_made_their_device_files() -> None:
    assert gpus.count_present(["null", "nvidiactl"], 4) == 4


def test_a_machine_without_the_driver_has_none(tmp_path: Path) -> None:
    assert gpus.detect({"CUDA_VISIBLE_DEVICES": "0"}, str(tmp_path)) == ()


def test_a_machine_with_the_driver_shows_what_the_variable_leaves(tmp_path: Path) -> None:
    for bus in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    assert gpus.detect({}, str(tmp_path)) == ("0", "1")
    assert gpus.detect({"CUDA_VISIBLE_DEVICES": "1"}, str(tmp_path)) == ("1",)


def test_a_node_that_is_told_of_gpus_it_does_not_see_believes_the_variable() -> None:
    assert gpus.believed({"CUDA_VISIBLE_DEVICES": "2,GPU-ab"}) == ("2", "GPU-ab")
    assert gpus.believed({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert gpus.believed({}) == ()


@pytest.mark.parametrize(
    ("devices", "asked"),
    [
        ([], [["-c=0", "-c=1", "-c=255"], ["-u", "-c=0"]]),
        (["nvidia0", "nvidia1", "nvidiactl"], [["-u", "-c=0"]]),
        (["nvidia1", "nvidiactl", "nvidia-uvm"], []),
    ],
)
def test_the_files_that_cuda_would_make_are_made_before_workers_may_not(
    devices: list[str], asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[str]] = []
    monkeypatch.setattr(gpus, "_modprobe", lambda *options: runs.append(list(options)))
    gpus.make_device_files(str(tmp_path))
    assert not runs, "no driver, no files"
    for bus in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    for name in devices:
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    gpus.make_device_files(str(tmp_path))
    assert runs == asked


@pytest.mark.parametrize("program", ["", "#!/bin/sh\necho no module >&2\nexit 1\n"])
def test_a_driver_whose_files_cannot_be_made_is_a_warning(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if program:
        (tmp_path / "nvidia-modprobe").write_text(program)
        (tmp_path / "nvidia-modprobe").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus._modprobe("-u")
    assert ("no module" if program else "could not be run") in caplog.text
