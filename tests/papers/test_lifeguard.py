"""Dadgar, Phillips, Currey, "Lifeguard: Local Health Awareness for More Accurate Failure Detection", 2018.

One test for each claim that the membership relies on, with the words it is made in.
"""

from __future__ import annotations

from lattica.mesh.membership import ACCUSE_S, LATE_S, Accuse
from tests.mesh.test_membership import Story, peer


def stalls(story: Story, seconds: float, times: int) -> Story:
    """Its process stands still for so long, again and again; what came meanwhile is heard after the timer."""
    for _ in range(times):
        story.now += seconds
        story.hear(story.core.tick(story.now))
        story.run(1.0)
    return story


def test_who_is_slow_itself_does_not_take_others_for_failed() -> None:
    """Abstract: "the local failure detector module may be at fault"."""
    assert not stalls(Story(12), ACCUSE_S + 1, times=10).times(Accuse)


def test_slow_processing_hides_no_true_failure_once_it_is_over() -> None:
    """Abstract: "The false positive rate and detection time for true failures can be reduced simultaneously"."""
    story = stalls(Story(12), 5.0, times=3)
    story.answering.discard(1)
    began = story.now
    story.run(ACCUSE_S + 5)
    (accused,) = story.times(Accuse)
    assert ACCUSE_S - 4 <= accused - began <= ACCUSE_S + 2


def test_a_timer_that_is_as_late_as_those_of_a_busy_machine_is_believed() -> None:
    """Doubt has a threshold: else who is always a little late would never accuse anybody."""
    story = Story(12, answers=range(2, 12))
    while not story.times(Accuse) and story.now < 30:
        due = story.core.next_deadline()
        assert due is not None
        story.now = max(story.now, due) + 0.8 * LATE_S
        story.hear(story.core.tick(story.now))
        for number in range(2, 12):
            story.core.heard(peer(number), story.now)
    assert story.times(Accuse, 1) and not story.times(Accuse, 2)
