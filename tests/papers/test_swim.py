"""Das, Gupta, Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership Protocol", 2002.

One test for each claim that the membership relies on, with the words it is made in.
"""

from __future__ import annotations

from lattica.mesh.membership import RING, Accuse, Ask, MemberChanged, Ping, State, Tell
from tests.mesh.test_membership import FIRST, SECOND, Story, numbers, peer


def pings(story: Story) -> int:
    return sum(isinstance(effect, Tell) and isinstance(effect.message, Ping) for _, effect in story.told)


def test_the_load_of_a_member_does_not_grow_with_the_group() -> None:
    """Abstract: "the expected message load per member, do not vary with group size"."""
    small, large = (pings(Story(count, answers=range(count)).run(60.0)) for count in (20, 500))
    assert abs(small - large) < 0.1 * small


def test_a_silent_process_is_suspected_before_it_is_declared_as_failed() -> None:
    """Abstract: "allow group members to suspect a process before declaring it as failed"."""
    story = Story(12)
    story.answering.discard(1)
    story.run(20.0, stop=lambda effect: isinstance(effect, Accuse))
    assert MemberChanged(peer(1), State.SUSPECT, State.ALIVE) in [effect for _, effect in story.told]
    assert story.state(1) is State.SUSPECT, "one accusation, our own, is none of failure"


def test_a_suspect_that_says_that_it_lives_is_rectified_everywhere() -> None:
    """Abstract: "this allows the system to discover and rectify false failure detections"."""
    for observer in (0, 3, 7):
        story = Story(12, me=observer)
        for witness in (5, 6):
            story.accuse(1, by=witness, dot=FIRST)
        assert story.write(1, SECOND) == [MemberChanged(peer(1), State.ALIVE, State.DEAD)]


def test_others_are_asked_before_anybody_is_accused() -> None:
    """§3.1, indirect probes: who does not answer is pinged by k others too."""
    story = Story(100)
    story.answering.discard(1)
    story.run(20.0, stop=lambda effect: isinstance(effect, Accuse))
    asked = [effect.peer for _, effect in story.told if isinstance(effect, Tell) and effect.message == Ask(peer(1))]
    assert asked and len(set(numbers(asked))) <= 2 * RING
