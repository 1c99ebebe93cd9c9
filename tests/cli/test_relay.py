"""`lattica relay`: what the node is told, and what is said of it."""

from __future__ import annotations

import pytest

from lattica.cli.status import page
from tests.cli.conftest import Lattica
from tests.cli.stage import Stage
from tests.cli.test_join import MET, said_of, ticket

__all__ = ["ticket"]


def given(stage: Stage) -> dict[str, str]:
    return dict(zip(stage.options[::2], stage.options[1::2], strict=True))


def test_a_relay_offers_nothing_but_to_relay_and_gets_its_ticket_by_a_pipe(
    lattica: Lattica, stage: Stage, ticket: str
) -> None:
    said = said_of(stage, lattica, "relay", ticket, "--listen-tls", "443", roles="relay")
    options = given(stage)
    assert stage.ticket == ticket and ticket not in " ".join(stage.options)
    assert (options["--relay"], options["--listen-tls"]) == ("yes", ":443")
    assert float(options["--num-cpus"]) == float(options["--num-gpus"]) == 0
    assert "with the roles relay" in said and "attach" not in said


@pytest.mark.parametrize(("text", "address"), [("8443", ":8443"), ("192.0.2.7:443", "192.0.2.7:443")])
def test_the_second_port_is_a_number_or_an_address(
    lattica: Lattica, stage: Stage, ticket: str, text: str, address: str
) -> None:
    said_of(stage, lattica, "relay", ticket, "--listen-tls", text)
    assert given(stage)["--listen-tls"] == address


def test_a_second_port_that_is_none_is_refused_before_anything_starts(lattica: Lattica, stage: Stage) -> None:
    result = lattica("relay", "--listen-tls", "https")
    assert result.exit_code == 2 and "no port" in result.output
    assert not stage.options


def test_an_ordinary_node_is_told_nothing_of_it(lattica: Lattica, stage: Stage, ticket: str) -> None:
    said_of(stage, lattica, "join", ticket)
    assert not {"--relay", "--listen-tls"} & given(stage).keys()


def status(**relays: object) -> str:
    return "\n".join(page({"mesh": MET | {"members": {"alive": 2}, "relays": relays}}, 0.0))


def test_status_says_by_way_of_whom_a_node_is_reached_and_what_it_carries_for_others() -> None:
    reached = status(reservations=[{"relay": "k3f9a2bc" + "a" * 44, "rtt_ms": 12.5}], serves={"channels": 0})
    assert "reached by way of k3f9a2bc (12.5 ms)" in reached and "for others" not in reached
    serves = {"channels": 3, "reservations": 7, "forwarded_bytes_total": 5 << 30, "dropped_datagrams_total": 2}
    carried = status(offering=True, reservations=[], serves=serves)
    assert "for others: 3 channels, 7 reservations, 5.0 GiB passed on, 2 datagrams dropped" in carried
    assert "relay" not in status(offering=False, reservations=[], serves={"channels": 0})
