"""The pure pieces of examples/rl: advantages, both policies, rollouts across episodes, options, progress."""

from __future__ import annotations

import io
import pickle
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

RL = "the example needs the rl extra: pip install 'lattica-mesh[rl]'"
gymnasium = pytest.importorskip("gymnasium", reason=RL)

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "rl"))
environment, experience = import_module("environment"), import_module("experience")
policy, progress, rollout = (import_module(name) for name in ("policy", "progress", "rollout"))
torch = learner = ppo = None


@pytest.fixture(scope="module", autouse=True)
def torch_is_here():
    """Imported only where these tests run, for it takes two seconds: each worker of a run collects all tests."""
    global torch, learner, ppo
    torch = pytest.importorskip("torch", reason=RL)
    learner, ppo = import_module("learner"), import_module("ppo")


COUNT = "lattica-tests/Count-v0"


class Count(gymnasium.Env):
    """Observes how many steps it has taken; action 6 ends the episode, and a time limit cuts it off after three."""

    observation_space = gymnasium.spaces.Box(0, 100, (1, 1), np.int64)
    action_space = gymnasium.spaces.Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.array([[0]]), {}

    def step(self, action):
        self.count += 1
        return np.array([[self.count]]), float(action), bool(action == 6), False, {}


@pytest.fixture
def count_env():
    gymnasium.register(COUNT, entry_point=Count, max_episode_steps=3, reward_threshold=12.5)
    yield COUNT
    del gymnasium.registry[COUNT]


def always(action):
    """Weights of a policy for Count that takes nothing but `action` (0 or 1)."""
    bias = np.array([100.0, -100.0] if action == 0 else [-100.0, 100.0], np.float32)
    return ((np.zeros((1, 2), np.float32), bias),)


def transitions(rewards, *, terminated=(), truncated=(), **fields):
    """Experience of one environment with these rewards; steps listed in `terminated` and `truncated` end an episode."""
    steps = len(rewards)
    ends = [[[t in which] for t in range(steps)] for which in (terminated, truncated)]
    given = {
        "observations": np.zeros((steps, 1, 1), np.float32),
        "actions": np.zeros((steps, 1), np.int64),
        "log_probabilities": np.zeros((steps, 1), np.float32),
        "rewards": np.array(rewards, np.float32)[:, None],
        "next_observations": np.zeros((steps, 1, 1), np.float32),
        "terminated": np.array(ends[0]),
        "truncated": np.array(ends[1]),
        "episode_returns": np.full((steps, 1), np.nan, np.float32),
    }
    return experience.Experience(**given | fields)


def advantages(seen, values, next_values, gamma=0.5, gae_lambda=0.5):
    column = (np.array(each, np.float32)[:, None] for each in (values, next_values))
    return learner.advantages(seen, *column, gamma=gamma, gae_lambda=gae_lambda)[:, 0]


class TestAdvantages:
    def test_they_equal_a_sum_worked_out_by_hand(self):
        # errors: 1 + 0.5·20 − 10 = 1;  2 + 0.5·40 − 20 = 2;  4 + 0.5·80 − 40 = 4; each later one counts a quarter
        result = advantages(transitions([1, 2, 4]), values=[10, 20, 40], next_values=[20, 40, 80])
        assert result.tolist() == [1 + (2 + 4 / 4) / 4, 2 + 4 / 4, 4]

    def test_nothing_follows_a_terminated_episode(self):
        seen = transitions([1, 2, 4], terminated=[1])
        result = advantages(seen, values=[10, 20, 40], next_values=[20, 1e6, 80])
        assert result.tolist() == [1 + (2 - 20) / 4, 2 - 20, 4]

    def test_a_truncated_episode_is_worth_its_last_observation_and_not_the_next_episode(self):
        seen = transitions([1, 2, 4], truncated=[1])
        result = advantages(seen, values=[10, 20, 40], next_values=[20, 60, 80])
        assert result.tolist() == [1 + (2 + 30 - 20) / 4, 2 + 30 - 20, 4]

    def test_an_episode_that_terminates_on_its_time_limit_is_worth_nothing_afterwards(self):
        result = advantages(transitions([1], terminated=[0], truncated=[0]), values=[10], next_values=[1e6])
        assert result.tolist() == [1 - 10]

    def test_with_lambda_one_they_are_the_discounted_returns_less_the_values(self):
        rng = np.random.default_rng(3)
        rewards, values = rng.normal(size=20), rng.normal(size=21)
        result = advantages(transitions(rewards), values[:-1], values[1:], gamma=0.9, gae_lambda=1.0)
        returns = [rewards[t:] @ 0.9 ** np.arange(20 - t) + 0.9 ** (20 - t) * values[-1] for t in range(20)]
        np.testing.assert_allclose(result, returns - values[:-1], atol=1e-5)


class TestPolicy:
    def test_numpy_and_torch_give_the_same_logits(self):
        made = learner.Learner(3, 4, learner.Settings(), seed=1)
        observations = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
        expected = made.policy(torch.from_numpy(observations)).detach().numpy()
        np.testing.assert_allclose(policy.logits(made.weights(), observations), expected, atol=1e-6)

    def test_weights_come_out_of_a_pickle_as_they_went_in(self):
        weights = learner.Learner(3, 2, learner.Settings(), seed=1).weights()
        again = pickle.loads(pickle.dumps(weights, protocol=5))
        for layer, other in zip(weights, again, strict=True):
            for array, copy in zip(layer, other, strict=True):
                assert array.dtype == copy.dtype == np.float32
                np.testing.assert_array_equal(array, copy)

    def test_log_probabilities_are_those_of_a_softmax_even_where_exp_would_overflow(self):
        logits = np.array([[1.0, 2.0, 3.0], [-5000.0, 0.0, 5000.0]], np.float32)
        actions = np.array([0, 1])
        expected = torch.from_numpy(logits).log_softmax(-1)[[0, 1], [0, 1]].numpy()
        np.testing.assert_allclose(policy.log_probabilities(logits, actions), expected, rtol=1e-6)

    def test_a_new_policy_is_nearly_uniform(self):
        made = learner.Learner(4, 2, learner.Settings(), seed=1)
        observations = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
        assert np.abs(policy.logits(made.weights(), observations)).max() < 0.1


class TestLearner:
    def test_an_action_that_is_rewarded_becomes_likely(self):
        made, rng = learner.Learner(1, 2, learner.Settings(epochs=4, minibatch=64), seed=1), np.random.default_rng(1)
        for _ in range(20):
            actions = rng.integers(2, size=(128, 1))
            scores = policy.logits(made.weights(), np.zeros((128, 1), np.float32))
            log_probabilities = policy.log_probabilities(scores[:, None], actions)
            rewards, every = actions[:, 0], range(128)
            seen = transitions(rewards, terminated=every, actions=actions, log_probabilities=log_probabilities)
            made.update(seen, remaining=1.0)
        scores = policy.logits(made.weights(), np.zeros((1, 1), np.float32))
        assert np.exp(policy.log_probabilities(scores, np.array([1])))[0] > 0.9

    def test_at_the_end_of_a_run_nothing_moves_any_more(self):
        made = learner.Learner(1, 2, learner.Settings(), seed=1)
        before = pickle.dumps(made.weights())
        made.update(transitions([1.0, 2.0, 3.0], terminated=[2]), remaining=0.0)
        assert pickle.dumps(made.weights()) == before

    def test_the_same_seed_and_experience_give_the_same_weights(self):
        made = [learner.Learner(1, 2, learner.Settings(), seed=4) for _ in range(2)]
        results = []
        for each in made:
            torch.manual_seed(5)
            each.update(transitions([1.0, 2.0, 3.0], terminated=[2]), remaining=0.5)
            results.append(pickle.dumps(each.weights()))
        assert results[0] == results[1]

    def test_one_that_goes_on_from_a_state_learns_what_the_first_would_have(self):
        seen = transitions([1.0, 2.0, 3.0], terminated=[2])
        first = learner.Learner(1, 2, learner.Settings(), seed=4)
        first.update(seen, remaining=0.9)
        state = pickle.dumps(first.state())
        first.update(seen, remaining=0.5)
        other = learner.Learner(1, 2, learner.Settings(), seed=9)
        other.restore(pickle.loads(state))
        other.update(seen, remaining=0.5)
        assert pickle.dumps(other.weights()) == pickle.dumps(first.weights())


class TestRollout:
    def test_an_episode_that_is_cut_off_ends_with_its_last_observation_and_the_next_begins_anew(self, count_env):
        seen = rollout.Rollout(count_env, envs=2, seed=np.random.SeedSequence(1)).sample(always(0), steps=5)
        assert seen.observations[:, 0, 0].tolist() == [0, 1, 2, 0, 1]
        assert seen.next_observations[:, 0, 0].tolist() == [1, 2, 3, 1, 2]
        assert seen.truncated[:, 0].tolist() == [False, False, True, False, False]
        assert not seen.terminated.any()
        assert seen.finished_returns == [15.0, 15.0]

    def test_a_terminated_episode_is_not_called_truncated(self, count_env):
        seen = rollout.Rollout(count_env, envs=1, seed=np.random.SeedSequence(1)).sample(always(1), steps=3)
        assert seen.terminated.all() and not seen.truncated.any()
        assert seen.finished_returns == [6.0, 6.0, 6.0]

    def test_episodes_go_on_from_one_call_to_the_next(self, count_env):
        playing = rollout.Rollout(count_env, envs=1, seed=np.random.SeedSequence(1))
        assert playing.sample(always(0), steps=2).finished_returns == []
        seen = playing.sample(always(0), steps=2)
        assert seen.observations[:, 0, 0].tolist() == [2, 0]
        assert seen.finished_returns == [15.0]

    def test_actions_count_from_zero_whatever_the_environment_counts_from(self, count_env):
        seen = rollout.Rollout(count_env, envs=1, seed=np.random.SeedSequence(1)).sample(always(1), steps=2)
        assert seen.actions.tolist() == [[1], [1]]
        assert seen.rewards.tolist() == [[6.0], [6.0]]

    def test_actions_are_drawn_as_often_as_the_policy_says(self, count_env):
        weights = ((np.zeros((1, 2), np.float32), np.log(np.array([0.2, 0.8], np.float32))),)
        seen = rollout.Rollout(count_env, envs=10, seed=np.random.SeedSequence(1)).sample(weights, steps=400)
        assert seen.actions.mean() == pytest.approx(0.8, abs=0.03)  # 4,000 draws: a deviation of 0.006
        np.testing.assert_allclose(np.exp(seen.log_probabilities), np.where(seen.actions, 0.8, 0.2), rtol=1e-5)

    def test_the_same_seed_plays_the_same_and_another_does_not(self):
        weights = learner.Learner(4, 2, learner.Settings(), seed=1).weights()
        one, two = np.random.SeedSequence(7).spawn(2)
        played = [rollout.Rollout("CartPole-v1", 4, seed).sample(weights, 20) for seed in (one, one, two)]
        np.testing.assert_array_equal(played[0].observations, played[1].observations)
        assert (played[0].observations[0] != played[2].observations[0]).all()

    def test_joined_experience_has_all_environments_and_its_episodes_in_order_of_their_ends(self):
        returns = [[[np.nan], [3.0]], [[1.0], [np.nan]]]
        parts = [transitions([0, 0], episode_returns=np.array(each, np.float32)) for each in returns]
        joined = experience.join(parts)
        assert joined.observations.shape == (2, 2, 1)
        assert joined.steps == 4
        assert joined.finished_returns == [1.0, 3.0]


class TestEnvironment:
    def test_its_sizes_and_target_are_those_of_the_spaces_and_the_registration(self, count_env):
        assert environment.inspect(count_env) == environment.Environment(1, 2, 12.5)
        assert environment.inspect("CartPole-v1") == environment.Environment(4, 2, 475.0)

    @pytest.mark.parametrize(
        ("env_id", "says"),
        [
            ("CartPole-v99", "pprint_registry"),
            ("no_such_module:Env-v0", "No module named 'no_such_module'"),
            ("Pendulum-v1", "Try CartPole-v1"),
            ("FrozenLake-v1", "Try CartPole-v1"),
        ],
    )
    def test_one_that_cannot_be_played_is_refused_with_the_next_step(self, env_id, says):
        with pytest.raises(environment.UnsuitableEnvironmentError, match=says):
            environment.inspect(env_id)


class TestProgress:
    def test_a_target_counts_only_over_a_hundred_episodes(self):
        going = progress.Progress(io.StringIO(), now=0.0)
        going.record(10, [500.0] * 99, now=1.0)
        assert not going.reached(475.0)
        going.record(10, [500.0], now=2.0)
        assert going.reached(475.0)
        assert not going.reached(None)
        going.record(10, [0.0] * 6, now=3.0)
        assert going.mean_return == 470.0 and not going.reached(475.0)

    def test_it_says_what_there_is_to_say_before_the_first_episode_ends(self):
        going = progress.Progress(io.StringIO(), now=0.0)
        going.record(1_000, [], now=0.5)
        assert " ".join(str(going).split()) == "update 1 1,000 steps 2,000 steps/s return – (last 0) 0.5 s"
        assert going.curve == []

    def test_in_a_file_lines_come_seldom_and_the_end_is_told(self):
        stream = io.StringIO()
        going = progress.Progress(stream, now=0.0)
        for tenth in range(1, 31):
            going.record(10, [20.0], now=tenth / 10)
        going.close()
        assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1", "21", "30"]

    def test_the_end_is_not_told_twice(self):
        stream = io.StringIO()
        going = progress.Progress(stream, now=0.0)
        going.record(10, [20.0], now=1.0)
        going.close()
        assert len(stream.getvalue().splitlines()) == 1

    def test_on_a_terminal_one_line_is_rewritten_and_never_wraps(self, monkeypatch):
        stream = io.StringIO()
        stream.isatty = lambda: True
        monkeypatch.setenv("COLUMNS", "40")
        going = progress.Progress(stream, now=0.0)
        going.record(10, [20.0], now=1.0)
        going.record(10, [20.0], now=2.0)
        going.close()
        assert stream.getvalue().count("\n") == 1
        lines = stream.getvalue().replace("\x1b[K", "").replace("\n", "").split("\r")[1:]
        assert [len(line) for line in lines] == [39, 39, 39]

    @pytest.mark.parametrize("curve", [[], [(10, 20.0), (20, 25.0)]])
    def test_the_curve_is_a_png_even_if_nothing_was_learned(self, curve, tmp_path):
        pytest.importorskip("matplotlib", reason=RL)
        progress.plot(curve, 475.0, "a run", tmp_path / "curve")
        assert (tmp_path / "curve").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


class TestOptions:
    def test_without_any_they_ask_for_cartpole_on_two_workers(self):
        options = ppo.options_parser().parse_args([])
        assert (options.env, options.workers, options.seed, options.time_limit) == ("CartPole-v1", 2, 0, 90.0)
        assert options.target is None
        assert options.out == Path("learning-curve.png")

    def test_each_can_be_given(self):
        words = (
            "--workers 4 --envs 16 --env Acrobot-v1 --seed 3 --target -90 --steps 9000 --time-limit 1.5 --out a/b.png"
        )
        options = ppo.options_parser().parse_args(words.split())
        assert (options.workers, options.envs, options.env, options.seed) == (4, 16, "Acrobot-v1", 3)
        assert (options.target, options.steps, options.time_limit) == (-90.0, 9000, 1.5)
        assert options.out == Path("a/b.png")

    @pytest.mark.parametrize("words", ["--workers 0", "--envs two", "--seed -1", "--time-limit 0", "--time-limit nan"])
    def test_a_senseless_one_is_refused_and_named(self, words, capsys):
        with pytest.raises(SystemExit) as ended:
            ppo.options_parser().parse_args(words.split())
        assert ended.value.code == 2
        assert words.split()[0] in capsys.readouterr().err


def test_an_unknown_environment_is_exit_code_2_before_anything_is_started(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ppo.py", "--env", "CartPole-v99"])
    monkeypatch.setattr(ppo.lattica, "init", lambda *_, **__: pytest.fail("a session is started"))
    with pytest.raises(SystemExit) as ended:
        ppo.main()
    assert ended.value.code == 2 and "pprint_registry" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_kept_goes_on_with_its_networks_optimiser_and_curve(tmp_path):
    saved = import_module("saved")
    first, second = (learner.Learner(3, 2, learner.Settings(), seed) for seed in (1, 2))
    before = progress.Progress(io.StringIO(), 0.0)
    before.record(512, [20.0, 30.0], 4.0)
    saved.save(tmp_path / "run.pt", first.state(), before.so_far())
    found = saved.load(tmp_path / "run.pt")
    second.restore(found.learner)
    assert all(
        np.array_equal(a, b)
        for one, two in zip(first.weights(), second.weights(), strict=True)
        for a, b in zip(one, two, strict=True)
    )
    after = progress.Progress(io.StringIO(), 100.0)
    after.go_on(found.progress, 100.0)
    after.record(512, [70.0], 101.0)
    assert (after.steps, after.elapsed_s, after.curve) == (1024, 5.0, [(512, 25.0), (1024, 40.0)])


def test_a_run_that_was_not_kept_begins_anew_and_a_file_cannot_run_code(tmp_path):
    saved = import_module("saved")
    assert saved.load(tmp_path / "run.pt") is None
    torch.save(print, tmp_path / "run.pt")
    with pytest.raises(pickle.UnpicklingError):
        saved.load(tmp_path / "run.pt")
