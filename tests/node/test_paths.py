"""Where a node's things lie, and who is believed to live there."""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from lattica.errors import ConfigError
from lattica.node import paths
from lattica.node.paths import NodeFile


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """An environment of our own."""
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "tmp").mkdir()
    return {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "TMPDIR": str(tmp_path / "tmp")}


def node_here(**changed: object) -> NodeFile:
    me = NodeFile(os.getpid(), paths.process_birth(os.getpid()), "/run/x.sock", "ab12", "0.1.0", "/data/sessions/1-2")
    return replace(me, **changed)


def test_the_data_directory_is_the_given_one_else_that_of_the_variable_else_that_of_the_user() -> None:
    environ = {"LATTICA_DATA_DIR": "/a", "XDG_DATA_HOME": "/b"}
    assert paths.data_dir("/c", environ) == "/c"
    assert paths.data_dir(None, environ) == "/a"
    assert paths.data_dir(None, {"XDG_DATA_HOME": "/b"}) == "/b/lattica"
    assert paths.data_dir(None, {}).endswith("/.local/share/lattica")


def test_a_relative_data_directory_means_the_same_after_a_change_of_directory() -> None:
    assert paths.data_dir("here", {}) == os.path.join(os.getcwd(), "here")


def test_a_data_directory_in_which_others_may_write_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    with pytest.raises(ConfigError, match="chmod go-w"):
        paths.make_data_dir(str(tmp_path))


def test_a_data_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    paths.make_data_dir(str(path))
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_data_directory_that_cannot_be_made_says_why_and_how_to_choose_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--data-dir"):
        paths.make_data_dir(str(tmp_path / "file" / "data"))


def test_sockets_lie_in_the_runtime_directory_where_there_is_one(places: dict[str, str]) -> None:
    assert paths.runtime_dir(places) == places["XDG_RUNTIME_DIR"] + "/lattica"
    assert os.stat(paths.runtime_dir(places)).st_mode & 0o777 == 0o700


def test_sockets_lie_in_the_temporary_directory_where_there_is_no_runtime_directory(places: dict[str, str]) -> None:
    os.rmdir(places["XDG_RUNTIME_DIR"])
    assert paths.runtime_dir(places) == f"{places['TMPDIR']}/lattica-{os.geteuid()}/sockets"


def test_a_symlink_in_the_place_of_our_folder_is_refused(places: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    os.symlink(tmp_path / "elsewhere", f"{places['TMPDIR']}/lattica-{os.geteuid()}")
    with pytest.raises(ConfigError, match="is no folder"):
        paths.temporary_dir(places)


def test_a_folder_that_others_can_look_into_is_refused(places: dict[str, str]) -> None:
    os.mkdir(f"{places['TMPDIR']}/lattica-{os.geteuid()}")
    os.chmod(f"{places['TMPDIR']}/lattica-{os.geteuid()}", 0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        paths.temporary_dir(places)


def test_a_folder_that_another_user_made_before_us_is_refused(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = paths.temporary_dir(places)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    os.rename(folder, f"{places['TMPDIR']}/lattica-4242")
    with pytest.raises(ConfigError, match="belongs to user"):
        paths.temporary_dir(places)


def test_a_socket_has_a_path_that_can_be_bound_whatever_the_directories_are_called(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir(mode=0o700)
    path = paths.socket_path("/data", {"XDG_RUNTIME_DIR": str(long), "TMPDIR": str(long)})
    assert len(path) <= paths.SOCKET_PATH_MAX_BYTES
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    os.unlink(path)


def test_each_data_directory_has_a_socket_of_its_own_under_all_its_names(
    places: dict[str, str], tmp_path: Path
) -> None:
    os.symlink(tmp_path, tmp_path / "alias")
    one, same, other = (paths.socket_path(str(tmp_path / name), places) for name in ("data", "alias/data", "data2"))
    assert one == same != other


def test_the_data_directory_the_usual_one_and_the_sockets_are_secret_as_far_as_they_exist(tmp_path: Path) -> None:
    environ = {"XDG_DATA_HOME": str(tmp_path / "share"), "LATTICA_DATA_DIR": str(tmp_path / "data")}
    for name in ("data/identity", "share", "run"):
        (tmp_path / name).mkdir(parents=True)
    os.symlink(tmp_path / "data", tmp_path / "alias")

    def secret(needed: str) -> list[str]:
        found = paths.secret_folders(str(tmp_path / "alias"), str(tmp_path / "run/x.sock"), [needed, ""], environ)
        return [os.path.relpath(path, tmp_path) for path in found]

    assert secret("/usr") == secret(str(tmp_path)) == secret(str(tmp_path / "data2")) == ["data", "run"]
    (tmp_path / "share/lattica").mkdir()
    assert secret("/usr") == ["data", "share/lattica", "run"]
    assert secret(str(tmp_path / "data/venv")) == ["data/identity", "share/lattica", "run"], "workers live there"


def test_a_data_directory_that_may_not_be_written_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used: No such file"):
        paths.lock_data_dir(str(tmp_path / "gone"))


def test_a_node_that_wrote_its_file_is_found(tmp_path: Path) -> None:
    paths.write_node_file(str(tmp_path), node_here())
    assert paths.running_node(str(tmp_path)) == node_here()
    assert (tmp_path / "node.json").stat().st_mode & 0o777 == 0o600


def test_a_node_that_ended_is_not_found(tmp_path: Path) -> None:
    paths.write_node_file(str(tmp_path), node_here())
    paths.remove_node_file(str(tmp_path))
    assert paths.running_node(str(tmp_path)) is None


def test_another_process_that_bears_a_dead_nodes_pid_is_not_taken_for_it(tmp_path: Path) -> None:
    paths.write_node_file(str(tmp_path), node_here(birth="another-boot/17"))
    assert paths.running_node(str(tmp_path)) is None


def test_a_process_that_has_ended_was_never_born_to_us() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert paths.process_birth(pid) == "", "a zombie lives no more"
    os.waitpid(pid, 0)
    assert paths.process_birth(pid) == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1}', '{"pid": "1", "birth": "", "socket": 2}', "null", "\xff"]
)
def test_a_node_file_that_no_node_wrote_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_bytes(text.encode("latin-1"))
    assert paths.running_node(str(tmp_path)) is None


def test_a_node_file_of_a_later_release_is_read(tmp_path: Path) -> None:
    paths.write_node_file(str(tmp_path), node_here())
    text = (tmp_path / "node.json").read_text()
    (tmp_path / "node.json").write_text(text.replace("{", '{"colour": "blue",', 1))
    assert paths.running_node(str(tmp_path)) == node_here()


def test_two_nodes_cannot_run_on_one_data_directory(tmp_path: Path) -> None:
    lock = paths.lock_data_dir(str(tmp_path))
    with pytest.raises(ConfigError, match="starts or ends"):
        paths.lock_data_dir(str(tmp_path))
    paths.write_node_file(str(tmp_path), node_here())
    with pytest.raises(ConfigError, match=rf"(?s)pid {os.getpid()}.*lattica stop"):
        paths.lock_data_dir(str(tmp_path))
    os.close(lock)
    os.close(paths.lock_data_dir(str(tmp_path)))


def test_a_session_is_removed_at_its_end(places: dict[str, str]) -> None:
    session = paths.open_session(paths.embedded_sessions(places), keep=0)
    assert os.stat(session.path).st_mode & 0o777 == 0o700
    Path(session.logs, "worker-1-2.out").touch()
    session.close(remove=True)
    assert os.listdir(paths.embedded_sessions(places)) == []


def test_sessions_of_dead_nodes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    """A node is killed and leaves its folder; another one lives; a third begins."""
    parent = str(tmp_path / "sessions")
    living = paths.open_session(parent, keep=0)
    dead = os.path.join(parent, "1-4242")
    os.mkdir(dead)
    begun = paths.open_session(parent, keep=0)
    assert sorted(os.listdir(parent)) == sorted(os.path.basename(session.path) for session in (living, begun))
    living.close(remove=True)
    begun.close(remove=True)


def test_a_data_directory_keeps_the_newest_sessions(tmp_path: Path) -> None:
    for name in ("1000-7", "1001-7", "1002-7", "1003-7"):
        (tmp_path / name / "logs").mkdir(parents=True)
    session = paths.open_session(str(tmp_path), keep=2)
    assert sorted(os.listdir(tmp_path)) == ["1002-7", "1003-7", os.path.basename(session.path)]
    session.close(remove=False)
    assert os.path.isdir(session.logs)


def test_sweeping_touches_nothing_that_is_not_a_session(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "12-x").mkdir()
    os.symlink(tmp_path / "notes", tmp_path / "1-1")
    session = paths.open_session(str(tmp_path), keep=0)
    assert {"notes", "12-x", "1-1"} <= set(os.listdir(tmp_path))
    session.close(remove=True)


def test_a_session_is_locked_before_others_can_see_it(tmp_path: Path) -> None:
    session = paths.open_session(str(tmp_path))
    other = os.open(session.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    session.close(remove=True)


def test_spilled_objects_lie_on_a_disk_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.in_memory("/dev/shm") and not paths.in_memory("/proc/self")
    own = f"lattica-spill-{os.geteuid()}"
    assert paths.spill_folder("/mnt/fast", "/s", "/d") == f"/mnt/fast/{own}"
    monkeypatch.setattr(paths, "in_memory", lambda path: path.startswith("/tmp"))
    assert paths.spill_folder("", "/tmp/session", "") == f"/var/tmp/{own}"
    assert paths.spill_folder("", "/tmp/session", "/home/u/lattica") == "/home/u/lattica/spill"


def test_the_folder_of_a_dead_node_is_swept_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    mine = paths.open_session(str(tmp_path), keep=0, inside=())
    dead = tmp_path / "1000-2000"
    dead.mkdir()
    (dead / "00000001").write_bytes(b"spilled")
    paths.sweep(str(tmp_path))
    assert [each.name for each in tmp_path.iterdir()] == [os.path.basename(mine.path)]
    mine.close(remove=True)
    assert not list(tmp_path.iterdir())
