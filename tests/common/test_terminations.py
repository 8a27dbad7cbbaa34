"""Values are right where episodes end: by termination, by a time limit, after one step, anywhere in a window."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mpc import BMPC, TDMPC2, FacTDMPC
from tests.support.agents import (
    PointEnv,
    assert_same_state,
    make_agent,
    sample_windows,
    training_alone,
    value_of,
    vec,
)


def fit(algorithm: Any, env: Any, steps: int = 60, updates: int = 150, **kwargs: Any) -> Any:
    """
    :param algorithm: class of the agent
    :param env: environment
    :param steps: random transitions to collect
    :param updates: gradient steps to do on them, all at once
    :param kwargs: arguments of the agent
    :return: a fast learner: what is tested is where its values converge to
    """
    settings: dict[str, Any] = dict(learning_rate=1e-2, tau=0.5, seed=0, learning_starts=10**6)
    policy_kwargs = dict(num_bins=21, vmin=-3.0, vmax=3.0, dropout=0.0, enc_dim=32)
    model = make_agent(algorithm, env, policy_kwargs=policy_kwargs, **{**settings, **kwargs}).learn(steps)
    model.train(gradient_steps=updates, batch_size=32)
    return model


class ChainEnv(gym.Env):
    """
    A walk through numbered states (one-hot observations), one reward for each step, whatever the actions.

    :param rewards: reward of leaving each state
    :param end: how the last step ends the episode, "terminated" or "truncated"; or "circle", back to the first state
    """

    def __init__(self, rewards: tuple[float, ...], end: str) -> None:
        self.rewards, self.end = rewards, end
        self.observation_space = spaces.Box(0.0, 1.0, (len(rewards) + 1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.place = 0

    def observe(self, place: int | None = None) -> np.ndarray:
        """
        :param place: number of a state, the present one if None
        :return: its observation
        """
        return np.eye(len(self.rewards) + 1, dtype=np.float32)[self.place if place is None else place]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> Any:
        reward = self.rewards[self.place]
        self.place += 1
        last = self.place == len(self.rewards)
        if last and self.end == "circle":
            self.place = 0
        return self.observe(), reward, last and self.end == "terminated", last and self.end == "truncated", {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handle_timeout_termination", "expected", "tolerance"),
    [(True, [1 / 0.3] * 3, 0.2), (False, [2.35, 1.93, 2.64], 0.45)],  # the latter has an average to learn
    ids=["handled", "as ends"],
)
def test_time_limits_do_not_cut_values(
    algorithm: Any, handle_timeout_termination: bool, expected: list[float], tolerance: float
) -> None:
    """
    Reward 1 for ever: 1 / (1 - gamma) in every state, though episodes stop after five steps in a circle of three.

    If the limit counted as an end, every other visit of the second state would be followed by nothing:
    v0 = 1 + gamma v1, v1 = 1 + gamma v2 / 2, v2 = 1 + gamma v0.
    """
    if algorithm is BMPC and not handle_timeout_termination:
        pytest.skip("BMPC's targets ask its model, which says whether an end is likelier than not and knows no average")
    env = gym.wrappers.TimeLimit(ChainEnv((1.0, 1.0, 1.0), "circle"), 5)
    buffer = dict(handle_timeout_termination=handle_timeout_termination)
    model = fit(algorithm, env, gamma=0.7, replay_buffer_kwargs=buffer)
    assert [value_of(model, env.unwrapped.observe(place)) for place in range(3)] == pytest.approx(
        expected, abs=tolerance
    )


@pytest.mark.slow
@pytest.mark.parametrize("n_envs", [1, 3])
def test_values_of_a_chain_that_terminates(algorithm: Any, n_envs: int) -> None:
    """Two states, rewards 1 and 2: their values are 1 + 2 gamma and 2, since nothing comes after a termination."""
    env = vec(*[lambda: ChainEnv((1.0, 2.0), "terminated")] * n_envs)
    model = fit(algorithm, env, updates=100, gamma=0.9)
    observe = env.envs[0].observe  # type: ignore[attr-defined]
    assert [value_of(model, observe(place)) for place in (0, 1)] == pytest.approx([2.8, 2.0], rel=0.1)


@pytest.mark.slow
def test_values_of_a_chain_that_is_truncated(algorithm: Any) -> None:
    """
    The last observation of a truncated episode is the state whose value counts, not the first one of the next episode.

    Episodes of two kinds: from state 0 (reward 1) a truncation into state 1; from state 1 (reward 3) a termination.
    """

    class TwoKinds(ChainEnv):
        """Starts in both states in turn."""

        first = 1

        def reset(self, **kwargs: Any) -> Any:
            super().reset(**kwargs)
            self.first = self.place = 1 - self.first
            return self.observe(), {}

        def step(self, action: np.ndarray) -> Any:
            observation, reward, *_ = super().step(action)
            return observation, reward, self.place == 2, self.place == 1, {}

    env = TwoKinds((1.0, 3.0), "")
    model = fit(algorithm, env, updates=100, gamma=0.5)
    assert [value_of(model, env.observe(place)) for place in (0, 1)] == pytest.approx([1 + 0.5 * 3, 3.0], rel=0.1)


@pytest.mark.slow
def test_termination_is_predicted_where_it_happens(algorithm: Any) -> None:
    env = ChainEnv((1.0, 2.0, 1.0), "terminated")
    model = fit(algorithm, env, gamma=0.9)
    world_model = model.policy.world_model
    model.policy.set_training_mode(False)
    with th.no_grad():
        z = world_model.encode(th.as_tensor(np.stack([env.observe(place) for place in range(3)])))
        reached = world_model.next(z, th.zeros(3, 1))
        chances = world_model.termination(reached).sigmoid().flatten().tolist()
    assert chances[0] < 0.2 and chances[1] < 0.2 and chances[2] > 0.8


@pytest.mark.slow
def test_agent_avoids_a_termination_that_costs_it_the_future(algorithm: Any) -> None:
    """Positive actions pay best at once and end the episode: only an agent that knows what an end is leaves them."""

    class Cliff(gym.Env):
        """Reward 1, and 1 more for the step over the edge."""

        observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action: np.ndarray) -> Any:
            over = bool(action[0] > 0)
            return np.zeros(1, np.float32), 1.0 + over, over, False, {}

    env = gym.wrappers.TimeLimit(Cliff(), 20)
    student = dict(distill_steps=100, distill_learning_rate=3e-3) if algorithm is FacTDMPC else {}
    model = fit(algorithm, env, steps=150, gamma=0.9, num_samples=64, num_elites=8, **student)
    if student:
        model.learn(1, reset_num_timesteps=False)  # distils what has been learned
    assert model.policy.episodic
    mean, _ = evaluate_policy(model, env, 3, deterministic=True, warn=False)
    assert mean > 15  # 2 for an agent that steps over the edge at once


def test_termination_head_appears_with_the_first_termination(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(5), episodic="auto").learn(20)
    assert not model.policy.episodic
    assert not any("termination" in name for name in model.policy.state_dict())
    model.set_env(PointEnv(5, terminate=True))
    model.learn(3)
    assert not model.policy.episodic
    model.learn(20)
    assert model.policy.episodic
    head = {name: tensor.clone() for name, tensor in model.policy.state_dict().items() if "termination" in name}
    assert head
    model.learn(20)
    after = model.policy.state_dict()
    assert any(not th.equal(tensor, after[name]) for name, tensor in head.items())  # it is trained
    assert {"train/termination_loss"} <= model.logger.name_to_value.keys()


@pytest.mark.parametrize("reverse", [False, True])
def test_parameters_from_before_the_first_termination_can_be_set(algorithm: Any, reverse: bool, tmp_path: Path) -> None:
    model = make_agent(algorithm, PointEnv(5, terminate=True))
    before = copy.deepcopy(model.get_parameters())
    model.save(tmp_path / "model")
    model.learn(30)
    assert model.policy.episodic
    model.set_parameters(dict(reversed(before.items())) if reverse else before)
    assert not model.policy.episodic
    assert_same_state(model.get_parameters(), before)
    model.learn(30)
    assert model.policy.episodic
    assert algorithm.load(tmp_path / "model", env=PointEnv(5), episodic=True).learn(12).policy.episodic


def test_episodic_auto_is_the_reference_without_terminations(algorithm: Any) -> None:
    runs = [make_agent(algorithm, PointEnv(5), episodic=episodic, seed=1).learn(30) for episodic in ("auto", False)]
    assert_same_state(*(run.get_parameters() for run in runs))


def test_episodic_may_be_chosen(algorithm: Any) -> None:
    assert make_agent(algorithm, PointEnv(5), episodic=True).policy.episodic
    model = make_agent(algorithm, PointEnv(5, terminate=True), episodic=False).learn(30)
    assert not model.policy.episodic
    assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())


@pytest.mark.parametrize(("episodic", "expected"), [("auto", 1.0), (False, 1 + 0.99 * 826)])
def test_targets_look_past_terminations_only_if_they_are_ignored(
    algorithm: Any, episodic: bool | str, expected: float
) -> None:
    """Reward 1, then a termination into a state of value 826: the target is 1.0, or 818.7 as in TD-M(PC)²'s code."""
    if algorithm is BMPC:
        pytest.skip("BMPC's targets ask its model, which predicts terminations or does not: see the test below")
    model = make_agent(algorithm, PointEnv(5), episodic=episodic, gamma=0.99).learn(10)
    world_model = model.policy.world_model
    last = world_model.q_target.layers[-1]
    with th.no_grad():
        last.weight.zero_()
        last.bias.copy_((world_model.two_hot.encode(th.tensor([826.0])) + 1e-30).log().expand_as(last.bias))
    batch = sample_windows(model)
    ended = batch._replace(rewards=th.ones_like(batch.rewards), terminated=th.ones_like(batch.terminated))
    with th.no_grad():
        target = model.value_target(world_model.encode(batch.observations)[1:], ended, model.draw_noise(8))
    assert target.flatten().tolist() == pytest.approx([expected] * target.numel(), rel=1e-3)


def test_flags_of_numpy_are_flags(algorithm: Any) -> None:
    env = PointEnv(5, terminate=True)
    model = make_agent(algorithm, env, episodic=np.False_, **training_alone(algorithm)).learn(12)
    assert model.episodic is False and model.continues(model.replay_buffer.sample(8)).min() == 1
    model = make_agent(algorithm, PointEnv(), episodic=np.True_)
    assert model.policy.world_model.termination_head is not None
    model.learn(1, random_seeding=np.False_)
    assert model.learning_starts == 0


def test_ignored_terminations_reach_no_parameter(algorithm: Any) -> None:
    """Episodes that terminate and episodes that are truncated give the same agent."""
    runs = [
        make_agent(algorithm, PointEnv(5, terminate), episodic=False, seed=1).learn(30) for terminate in (True, False)
    ]
    assert_same_state(*(run.get_parameters() for run in runs))


def test_a_saved_agent_may_ignore_terminations_from_now_on(algorithm: Any, tmp_path: Path) -> None:
    env = PointEnv(5, terminate=True)
    model = make_agent(algorithm, env).learn(30)
    assert model.policy.episodic
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env, episodic=False)
    assert not loaded.policy.episodic
    loaded.learn(20)
    assert not loaded.policy.episodic


def test_a_distilled_agent_may_ignore_the_terminations_of_its_expert() -> None:
    env = PointEnv(5, terminate=True)
    expert = make_agent(TDMPC2, env).learn(20)
    assert expert.policy.episodic and make_agent(FacTDMPC, env, expert=expert).policy.episodic
    assert not make_agent(FacTDMPC, env, expert=expert, episodic=False).policy.episodic


@pytest.mark.slow
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_values_of_episodes_of_one_step(algorithm: Any, end: str, n_envs: int) -> None:
    """
    Only the first step of every window counts. Its value is the reward where the episode terminates; where it is
    truncated, the value of the observation behind it comes on top.
    """
    env = vec(*[lambda: ChainEnv((2.0,), end)] * n_envs)
    model = fit(algorithm, env, steps=20, updates=100, horizon=3, gamma=0.5)
    assert model.replay_buffer.sample(20).mask[:, :, 0].sum(1).tolist() == [20, 0, 0]
    first, last = (value_of(model, np.eye(2, dtype=np.float32)[place]) for place in (0, 1))
    assert first == pytest.approx(2.0 if end == "terminated" else 2.0 + 0.5 * last, rel=0.1)


@pytest.mark.parametrize("buffer_size", [1, 2, 5])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("terminate", [True, False])
def test_updates_need_less_data_than_a_window(algorithm: Any, buffer_size: int, n_envs: int, terminate: bool) -> None:
    env = vec(*[lambda: PointEnv(3, terminate)] * n_envs)
    model = make_agent(algorithm, env, horizon=4, buffer_size=buffer_size, learning_starts=0).learn(10)
    assert model._n_updates == 10 // n_envs
    assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())
    losses = {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}
    assert "train/value_loss" in losses and np.isfinite(list(losses.values())).all()


def test_padding_has_no_influence(algorithm: Any) -> None:
    """What stands behind the end of an episode must not reach the parameters."""

    def run(padding: float) -> Any:
        model = make_agent(algorithm, PointEnv(3, terminate=True), horizon=4, seed=0)
        real = model.replay_buffer.sample

        def sample(*args: Any, **kwargs: Any) -> Any:
            batch = real(*args, **kwargs)
            padded = batch.mask == 0
            observations = batch.observations.clone()
            observations[1:] = th.where(padded, padding, observations[1:])
            return batch._replace(
                observations=observations,
                actions=th.where(padded, min(padding, 1.0), batch.actions),
                rewards=th.where(padded, padding, batch.rewards),
                terminated=th.where(padded, min(padding, 1.0), batch.terminated),
            )

        model.replay_buffer.sample = sample
        model.learn(30)
        assert model._n_updates == 22
        return dict(model.policy.state_dict())

    first, second = run(0.0), run(5.0)
    for name, tensor in first.items():
        assert th.allclose(tensor, second[name], atol=1e-6), name
