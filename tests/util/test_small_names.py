"""Small helpers by Ray's names: what is said once, what a program counts, where a machine is reached."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

import lattica
from lattica.compat import ray_names
from lattica.errors import ConfigError
from lattica.util import debug, get_node_ip_address, log_once, metrics


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(debug, "_said", debug._Said())
    yield


def test_a_thing_is_said_once_and_again_only_if_it_is_forgotten(fresh: None) -> None:
    assert [log_once("a"), log_once("a"), log_once("b")] == [True, False, True]
    debug.reset_log_once("a")
    assert [log_once("a"), log_once("b")] == [True, False]
    debug.reset_log_once()
    assert log_once("b")
    debug.disable_log_once_globally()
    assert not log_once("c")


def test_with_periodic_logging_everything_may_be_said_again_after_a_minute(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(debug.time, "monotonic", lambda: now[0])
    debug.enable_periodic_logging()
    assert log_once("a") and not log_once("a")
    now[0] += debug.AGAIN_S + 1
    assert not log_once("a") and log_once("a")


def test_metrics_count_by_tags_and_say_once_that_nobody_collects_them(
    fresh: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        counter = metrics.Counter("calls", tag_keys=("route",))
        gauge, histogram = metrics.Gauge("depth"), metrics.Histogram("seconds", boundaries=[0.1, 1])
    assert len([record for record in caplog.records if "no node collects" in record.getMessage()]) == 1
    counter.set_default_tags({"route": "/"}).inc()  # type: ignore[attr-defined]
    counter.inc(2, {"route": "/a"})
    gauge.set(3)
    gauge.set(None)
    for value in (0.05, 0.1, 0.5, 7):
        histogram.observe(value)
    assert counter._values == {(("route", "/"),): 1.0, (("route", "/a"),): 2}
    assert gauge._values == {(): 3} and histogram._values == {(): [2, 1, 1]}
    assert counter.info["default_tags"] == {"route": "/"} and histogram.info["boundaries"] == [0.1, 1]


def test_metrics_refuse_what_cannot_be_counted(fresh: None) -> None:
    counter = metrics.Counter("calls", tag_keys=("route",))
    for wrong in (lambda: counter.inc(0, {"route": "/"}), counter.inc, lambda: counter.inc(tags={"other": "x"}),
                  lambda: metrics.Gauge(""), lambda: metrics.Histogram("h", boundaries=[0, 1])):  # fmt: skip
        with pytest.raises(ConfigError):
            wrong()


def test_the_address_of_a_node_is_one_of_this_machine() -> None:
    with socket.socket() as listener:
        listener.bind((get_node_ip_address(), 0))
    assert get_node_ip_address("127.0.0.1:9") == "127.0.0.1"


def test_ids_have_rays_methods() -> None:
    actor = ray_names.ActorID.from_random()
    assert ray_names.ActorID.from_hex(actor.hex()) == actor == ray_names.ActorID.from_binary(actor.binary())
    assert not actor.is_nil() and ray_names.ActorID.nil().is_nil() and len(actor) == ray_names.ActorID.size()
    assert ray_names.JobID.from_int(7).int() == 7 and repr(ray_names.JobID.from_int(7)) == "JobID(00000007)"
    with pytest.raises(ValueError, match="has 4 bytes"):
        ray_names.JobID.from_hex("00")
    assert ray_names.LoggingConfig.from_dict(ray_names.LoggingConfig("JSON").to_dict()).encoding == "JSON"


def test_an_actor_class_cannot_be_a_base() -> None:
    @lattica.remote
    class Base:
        pass

    with pytest.raises(lattica.actor.ActorClassInheritanceException, match="cannot be the base of another class"):

        class Derived(Base):  # type: ignore[misc,valid-type]
            pass

    assert issubclass(lattica.actor.ActorClassInheritanceException, TypeError)
