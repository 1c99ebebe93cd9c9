"""A cluster's file: what it says, and where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.errors import ConfigError
from lattica.launch.cluster import Cluster, Host, Login, Start, read_cluster

EXAMPLES = Path(__file__).parents[2] / "examples"


def read(folder: Path, text: str) -> Cluster:
    file = folder / "c.yaml"
    file.write_text(text)
    return read_cluster(str(file))


def wrong(folder: Path, text: str) -> str:
    """What is said of a file that is wrong, without its folder."""
    with pytest.raises(ConfigError) as raised:
        read(folder, text)
    return str(raised.value).replace(f"{folder}/", "")


def test_a_local_cluster_has_as_many_nodes_as_the_file_says(tmp_path: Path) -> None:
    cluster = read(
        tmp_path,
        "name: demo\nprovider: {type: local, nodes: 2, num_cpus: 1, labels: {a: x}}\nstart: {labels: {b: 7}}\n",
    )
    start = Start(num_cpus=1.0, labels={"a": "x", "b": "7"})
    assert cluster.hosts == (Host("node-0", start), Host("node-1", start))


def test_a_host_says_more_than_its_provider_and_the_provider_more_than_start(tmp_path: Path) -> None:
    text = """
name: lab
provider:
  type: ssh
  user: you
  port: 22
  options: {ProxyJump: bastion, Compression: yes}
  python: ~/venv/bin/python
  hosts:
    - desk
    - {host: 192.0.2.7, name: gpu, port: 2222, user: me, num_gpus: 2, options: {ProxyJump: none}, data_dir: /s/lattica}
start: {num_cpus: 3, listen: ":7411", object_store_memory: 4GiB}
setup: [echo one, echo two]
"""
    cluster = read(tmp_path, text)
    common = Start(num_cpus=3.0, listen=":7411", object_store_memory="4GiB")
    options = {"ProxyJump": "bastion", "Compression": "yes"}
    desk = Login("desk", 22, "you", None, options)
    gpu = Login("192.0.2.7", 2222, "me", None, options | {"ProxyJump": "none"})
    assert cluster.hosts == (
        Host("desk", common, desk, "~/venv/bin/python"),
        Host("gpu", Start(num_gpus=2.0).over(common), gpu, "~/venv/bin/python", "/s/lattica"),
    )
    assert cluster.setup == ("echo one", "echo two")
    assert not cluster.warnings


@pytest.mark.parametrize("name", ["cluster-local.yaml", "cluster-ssh.yaml"])
def test_the_examples_are_right(name: str) -> None:
    assert len(read_cluster(str(EXAMPLES / name)).hosts) >= 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "name: a\nprovider:\n  type: local\n  num_cpu: 1\n",
            "c.yaml:4:3: provider.num_cpu: there is no such key here\n  do next   do you mean `num_cpus`?",
        ),
        (
            "name: a\nprovider:\n  type: local\n  nodes: many\n",
            "c.yaml:4:10: provider.nodes: expected a whole number from 1 to 64, found 'many'",
        ),
        (
            "name: a\nprovider: {type: local, nodes: 0}\n",
            "c.yaml:2:32: provider.nodes: expected a whole number from 1 to 64, found '0'",
        ),
        (
            "name: a\nprovider: {type: locl}\n",
            "c.yaml:2:18: provider.type: expected local or ssh, found 'locl'\n  do next   do you mean `local`?",
        ),
        (
            "name: a\n",
            "c.yaml:1:1: the file: the key `provider` is missing",
        ),
        (
            "name: a\nprovider: {type: local}\nstart: {listen: ':7411'}\n",
            "c.yaml:3:17: start.listen: nodes of a local cluster listen on 127.0.0.1",
        ),
        (
            "name: a\nprovider: {type: ssh, hosts: [x]}\nstart: {listen: ':0'}\n",
            "c.yaml:3:17: start.listen: expected HOST:PORT, :PORT or none, with a port that stays",
        ),
        (
            "nmae: a\nprovider: {type: local}\n",
            "c.yaml:1:1: the file: the key `name` is missing\n  do next   do you mean `nmae`?",
        ),
        (
            "name: ../a\nprovider: {type: local}\n",
            "c.yaml:1:7: name: expected a name of letters",
        ),
        (
            "name: on\nprovider: {type: local}\n",
            "`_` and `-` (at most 48), which stands in quotes, found 'on'",
        ),
        (
            "name: a\nname: b\nprovider: {type: local}\n",
            "c.yaml:2:1: name: stands twice, first at line 1",
        ),
        (
            "name: a\nprovider: local\n",
            "c.yaml:2:11: provider: expected keys and values, found 'local'",
        ),
        (
            "name: a\nprovider: {type: local}\nsetup: [x]\n",
            "c.yaml:3:8: setup: a local cluster",
        ),
        (
            "name: a\nprovider: {type: local, num_cpus: -1}\n",
            "c.yaml:2:35: provider.num_cpus: expected a number, 0 or more, found '-1'",
        ),
        (
            "name: a\nprovider: {type: local, labels: {x: 'a b'}}\n",
            "c.yaml:2:37: provider.labels.x: expected a label",
        ),
        (
            "name: a\nprovider: {type: local, object_store_memory: big}\n",
            "provider.object_store_memory: expected a size like 4GiB",
        ),
        (
            "name: a\nprovider: {type: ssh, hosts: []}\n",
            "c.yaml:2:30: provider.hosts: expected 1 to 1024 hosts, found 0",
        ),
        (
            "name: a\nprovider:\n  type: ssh\n  hosts:\n    - x\n    - {host: x, port: 5}\n",
            "c.yaml:6:7: provider.hosts[1]: two hosts are called x, the first at c.yaml:5:7",
        ),
        (
            "name: a\nprovider: {type: ssh, hosts: [-oProxyCommand=x]}\n",
            "c.yaml:2:31: provider.hosts[0]: expected a host's name or address",
        ),
        (
            "name: a\nprovider: {type: ssh, hosts: [{host: x, prot: 5}]}\n",
            "provider.hosts[0].prot: there is no such key here\n  do next   do you mean `port`?",
        ),
        (
            "name: a\nprovider: {type: ssh, hosts: ['::1']}\n",
            "'::1' cannot be a node's name\n  do next   write `{host: ADDRESS, name: NAME}`",
        ),
        (
            "name: a\n  provider: [\n",
            "c.yaml:2:11: this is no YAML: mapping values are not allowed here",
        ),
        (
            "name: !!python/object:os.system a\n",
            "c.yaml:1:7: this is no YAML: could not determine a constructor",
        ),
        (
            "",
            "c.yaml:1:1: the file is empty",
        ),
        (
            "- a\n",
            "c.yaml:1:1: the file: expected keys and values, found a list",
        ),
    ],
)
def test_a_mistake_is_said_with_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    assert said in wrong(tmp_path, text)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_cluster("nowhere.yaml")


def test_unverified_host_keys_are_warned_of(tmp_path: Path) -> None:
    cluster = read(tmp_path, "name: a\nprovider: {type: ssh, options: {StrictHostKeyChecking: no}, hosts: [x, y]}\n")
    [warning] = cluster.warnings
    assert "not verified (StrictHostKeyChecking=no)" in warning
