"""Which data directory is whose."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lattica.errors import ConfigError
from lattica.launch import places
from lattica.launch.cluster import Cluster, Host, Start


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_DATA_HOME": str(tmp_path)}


def cluster(name: str, nodes: int = 2) -> Cluster:
    return Cluster(name, f"{name}.yaml", "local", tuple(Host(f"node-{number}", Start()) for number in range(nodes)))


def dirs(hosts: tuple[Host, ...], tmp_path: Path) -> list[str]:
    return [os.path.relpath(host.data_dir, tmp_path) for host in hosts]


def test_the_first_node_lives_where_programs_look_by_default(tmp_path: Path, environ: dict[str, str]) -> None:
    assert dirs(places.placed(cluster("a"), environ), tmp_path) == ["lattica", "lattica/clusters/a/node-1"]
    elsewhere = environ | {"LATTICA_DATA_DIR": str(tmp_path / "mine")}
    assert dirs(places.placed(cluster("a"), elsewhere), tmp_path) == ["mine", "lattica/clusters/a/node-1"]


def test_the_first_node_of_a_second_cluster_lives_apart_and_stays_there(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """Cluster a has the usual place; b came later. When a is deleted, b's node-0 does not move."""
    a, b = places.placed(cluster("a"), environ), None
    places.claim("a", a[0], environ)
    b = places.placed(cluster("b"), environ)
    assert dirs(b, tmp_path)[0] == "lattica/clusters/b/node-0"
    places.claim("b", b[0], environ)
    assert places.purge("a", a[0].data_dir)
    assert places.placed(cluster("b"), environ) == b
    with pytest.raises(ConfigError, match="is of the cluster b"):
        places.claim("a", replace(a[0], data_dir=b[0].data_dir), environ)


def test_a_claim_makes_a_private_folder_and_keeps_its_port(tmp_path: Path, environ: dict[str, str]) -> None:
    _, host = places.placed(cluster("a"), environ)
    claimed = places.claim("a", host, environ)
    assert os.stat(host.data_dir).st_mode & 0o777 == 0o700
    assert claimed.start.listen.startswith("127.0.0.1:")
    assert places.claim("a", host, environ) == claimed


def test_a_purge_deletes_what_up_has_made_and_nothing_of_the_users(tmp_path: Path, environ: dict[str, str]) -> None:
    """The usual data directory had a key before: the cluster borrows it, and gives it back."""
    key = tmp_path / "lattica" / "identity" / "node.key"
    key.parent.mkdir(parents=True)
    key.write_text("the user's")
    hosts = places.placed(cluster("a"), environ)
    for host in hosts:
        places.claim("a", host, environ)
    (Path(hosts[1].data_dir) / "sessions").mkdir()
    assert [places.purge("a", host.data_dir) for host in hosts] == [False, True]
    places.tidy("a", environ)
    assert key.read_text() == "the user's"
    assert not places.owns("a", hosts[0].data_dir)
    assert not (tmp_path / "lattica" / "clusters").exists()


def test_a_purge_of_the_usual_place_leaves_other_clusters(tmp_path: Path, environ: dict[str, str]) -> None:
    a = places.placed(cluster("a"), environ)
    places.claim("a", a[0], environ)
    other = places.claim("b", places.placed(cluster("b"), environ)[1], environ)
    assert places.purge("a", a[0].data_dir)
    places.tidy("a", environ)
    assert places.owns("b", other.data_dir)
    assert sorted(os.listdir(tmp_path / "lattica")) == ["clusters"]


def test_nodes_that_the_file_does_not_name_any_more_are_found(tmp_path: Path, environ: dict[str, str]) -> None:
    three = cluster("a", 3)
    for host in places.placed(three, environ):
        places.claim("a", host, environ)
    one = cluster("a", 1)
    assert [host.name for host in places.left_over(one, places.placed(one, environ), environ)] == ["node-1", "node-2"]
    assert places.left_over(three, places.placed(three, environ), environ) == []


def test_the_first_node_is_found_whatever_the_variable_says_later(tmp_path: Path, environ: dict[str, str]) -> None:
    """`up` without LATTICA_DATA_DIR, `down` with one: it must not look for node-0 in that other place."""
    hosts = places.placed(cluster("a"), environ)
    for host in hosts:
        places.claim("a", host, environ)
    assert places.placed(cluster("a"), environ | {"LATTICA_DATA_DIR": str(tmp_path / "other")}) == hosts
    assert places.left_over(cluster("a"), hosts, environ) == []


@pytest.mark.parametrize("mark", ["", "[]", "{}", json.dumps({"cluster": "a", "host": 1, "made": True, "port": 0})])
def test_a_damaged_mark_is_none(tmp_path: Path, mark: str) -> None:
    (tmp_path / "cluster.json").write_text(mark)
    assert places.read_mark(str(tmp_path)) is None


def test_nodes_of_one_machine_share_its_memory() -> None:
    """Each of four offered all of it, and tasks that had asked for as much as they need met on it."""
    assert places.share(Start(object_store_memory="1GiB"), 4, 16 << 30).memory == 3 << 30
    assert [places.size_bytes(text) for text in ("7", "7b", "4g", "1.5 K", "2MB")] == [7, 7, 4 << 30, 1536, 2_000_000]
    assert places.share(Start(), 2, 1000).memory == 200, "the store of each takes what it does by itself"
    assert places.share(Start(), 8, 1000).memory == 0
    assert places.share(Start(), 1, 1000) == Start(), "alone it looks by itself"
