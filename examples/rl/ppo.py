"""Watch a policy learn: rollout workers play, one learner improves them (PPO, CartPole-v1 by default).

    python examples/rl/ppo.py
    python examples/rl/ppo.py --workers 4 --env Acrobot-v1 --seed 1
    python examples/rl/ppo.py --state run.pt      end it with Ctrl-C, type this again: it goes on where it was
    lattica submit examples/rl/ppo.py -- --workers 6        on a mesh: workers wherever there is room

The whole of it is the loop in `train`: weights go out as one object, experience comes back, the learner makes better
weights of it. `rollout.py` is what the workers do, `learner.py` is PPO. Machines may come and go meanwhile: a worker
whose machine dies is begun anew on another, the learner goes on from its last checkpoint, and what was lost between is
played again. The last line of output is the path of the learning curve.

Exit code: 0 if the target was reached (or there was none), 1 if not, 2 if an option was wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

CHECKPOINT_S = 2.0
SAVE_S = 2.0  # between two writes of --state
LOSSES_MAX = 20
"""Updates in a row that may be lost with machines before that is an error."""
INSTALL = "This example needs {}, which is not installed. Do: pip install 'lattica-mesh[rl]'"

try:
    import numpy as np
    from environment import Environment, UnsuitableEnvironmentError, inspect
    from experience import Experience, join
    from learner import Learner, Settings
    from progress import Progress, plot
    from rollout import Rollout
    from saved import load, save

    import lattica
    from lattica.errors import ActorError, ObjectLostError
except ModuleNotFoundError as error:
    sys.exit(INSTALL.format(error.name))


LOST = (ObjectLostError, ActorError)


# -1: as often as need be. A worker that dies is begun anew, maybe on another machine, and asked again.
@lattica.remote(max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
class RolloutWorker(Rollout):
    """A rollout in a process of its own, wherever there is room for one."""


@lattica.remote(max_restarts=-1, max_task_retries=-1, checkpoint_every=CHECKPOINT_S, scheduling_strategy="SPREAD")
class LearnerActor(Learner):
    """The learner in a process of its own. If its machine dies, it goes on elsewhere from its last checkpoint."""

    __lattica_checkpoint__ = Learner.state
    __lattica_restore__ = Learner.restore

    def learn(self, remaining: float, *experiences: Experience) -> tuple[int, list[float]]:
        """Learn from what the workers played; how many steps that were, and the returns of finished episodes."""
        experience = join(experiences)
        self.update(experience, remaining)
        return experience.steps, experience.finished_returns


def main() -> int:
    parser = options_parser()
    options = parser.parse_args()
    if find_spec("matplotlib") is None:  # used only at the end, but better missed now
        sys.exit(INSTALL.format("matplotlib"))
    try:
        environment = inspect(options.env)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.open("ab").close()  # a curve that cannot be written is better known now, too
    except (UnsuitableEnvironmentError, OSError) as error:
        parser.error(str(error))
    target = environment.target if options.target is None else options.target

    try:
        with lattica.init(), closing(Progress(sys.stdout, time.monotonic())) as progress:
            train(options, environment, target, progress)
    except KeyboardInterrupt:
        return 130  # what a shell expects of a program that Ctrl-C ended

    solved = target is None or progress.reached(target)
    if not solved:
        print(f"The target of {target:g} was not reached. Try a longer --time-limit, more --steps or another --seed.")
    plot(progress.curve, target, f"PPO on {options.env}, seed {options.seed}", options.out)
    print(options.out.resolve())
    if job := os.environ.get("LATTICA_JOB_ID"):  # of `lattica submit`: it runs in a copy of this folder, on some node
        print(f"copy it here by: lattica job fetch {job[:8]} {options.out}")
    return 0 if solved else 1


def train(options: argparse.Namespace, environment: Environment, target: float | None, progress: Progress) -> None:
    """Learn until the target is reached or steps or time are used up.

    Workers wait while the learner learns: so all experience comes from the newest weights, and the same options give
    the same run, however busy the machine is.
    """
    settings, state = Settings(), options.state
    seeds = np.random.SeedSequence(options.seed).spawn(options.workers)
    # mypy knows no class decorators
    workers = [RolloutWorker.remote(options.env, options.envs, seed) for seed in seeds]  # type: ignore[attr-defined]
    learner = LearnerActor.remote(  # type: ignore[attr-defined]
        environment.observation_size, environment.actions, settings, options.seed
    )
    if state is not None and (found := load(state)) is not None:
        lattica.get(learner.restore.remote(found.learner))
        progress.go_on(found.progress, time.monotonic())
    losses, saved_s = 0, progress.elapsed_s  # losses in a row

    while progress.steps < options.steps and progress.elapsed_s < options.time_limit and not progress.reached(target):
        weights = learner.weights.remote()  # one object for all: who needs it reads it, nobody copies it
        experiences = [worker.sample.remote(weights, settings.rollout_steps) for worker in workers]
        try:
            steps, returns = lattica.get(learner.learn.remote(1 - progress.steps / options.steps, *experiences))
        except LOST as error:
            losses += 1
            if losses > LOSSES_MAX:
                raise
            progress.note(f"again, since a machine was lost: {str(error).splitlines()[0]}", time.monotonic())
            continue
        losses = 0
        progress.record(steps, returns, time.monotonic())
        over = progress.steps >= options.steps or progress.elapsed_s >= options.time_limit or progress.reached(target)
        if state is not None and (over or progress.elapsed_s - saved_s > SAVE_S):
            saved_s = progress.elapsed_s
            save(state, lattica.get(learner.state.remote()), progress.so_far())


def options_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a policy with PPO on rollout workers that lattica runs.")
    add = parser.add_argument
    add("--workers", type=_count, default=2, metavar="N", help="rollout workers, a process each (default 2)")
    add("--envs", type=_count, default=8, metavar="N", help="environments in each worker (default 8)")
    add(
        "--env",
        default="CartPole-v1",
        metavar="ID",
        help="Box observations, Discrete actions (default CartPole-v1)",
    )
    add("--seed", type=_natural, default=0, metavar="N", help="same seed, same run (default 0)")
    add("--target", type=float, metavar="R", help="mean return of 100 episodes to stop at (default: the environment's)")
    add("--steps", type=_count, default=500_000, metavar="N", help="environment steps to stop after (default 500000)")
    add("--time-limit", type=_seconds, default=90.0, metavar="S", help="seconds of training to stop after (default 90)")
    add(
        "--state", type=Path, metavar="FILE", help="go on from it if it is there; keep the run in it (default: no file)"
    )
    add("--out", type=Path, default=Path("learning-curve.png"), metavar="PNG", help="default learning-curve.png")
    return parser


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
