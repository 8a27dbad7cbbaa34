"""Goal-conditioned environments: SB3's ``HerReplayBuffer`` in a script of SAC keeps working, with one goal a window."""

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_mpc import BMPC, TDMPC2, FacTDMPC, TDMPCSquare
from sb3_mpc.common.buffers.her import HerPlanReplayBuffer, HerSequenceReplayBuffer
from tests.support.agents import assert_one_clear_sentence, assert_same_state, make_agent, vec


class ReachEnv(gym.Env):
    """
    A point in the plane that shall come close to a goal.

    :param length: decisions in an episode
    :param terminate: end with ``terminated`` instead of ``truncated``
    """

    def __init__(self, length: int = 5, terminate: bool = False) -> None:
        plane = spaces.Box(-9, 9, (2,), np.float32)
        self.observation_space = spaces.Dict(observation=plane, achieved_goal=plane, desired_goal=plane)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.length, self.terminate = length, terminate

    def observe(self) -> dict[str, np.ndarray]:
        """:return: observation"""
        place = self.place.astype(np.float32)
        return dict(observation=np.sin(place), achieved_goal=place, desired_goal=self.goal)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-1, 1, 2), 0
        self.goal = self.np_random.uniform(-2, 2, 2).astype(np.float32)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.place, self.steps = self.place + action + self.np_random.normal(0, 0.01, 2), self.steps + 1
        observation, info, ended = self.observe(), {"weight": float(self.steps)}, self.steps == self.length
        reward = self.compute_reward(observation["achieved_goal"][None], self.goal[None], [dict(info)])[0]
        return observation, float(reward), ended and self.terminate, ended and not self.terminate, info

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
        """:return: distances ``[N]``, weighted by the infos, which it takes apart"""
        assert achieved.dtype == desired.dtype == np.float32
        weights = np.array([info.pop("weight", 1.0) for info in infos])
        return -weights * np.linalg.norm(achieved - desired, axis=-1)


class Lock(BitFlippingEnv):
    """Three bits, all zero at the start of its episodes of three steps."""

    def __init__(self) -> None:
        super().__init__(n_bits=3, continuous=True)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        self.state = np.zeros(3, np.int8)
        return self._get_obs(), {}


def make_her(algorithm: Any, env: Any, **kwargs: Any) -> Any:
    """
    :param algorithm: class
    :param env: goal-conditioned environment
    :param kwargs: arguments of the agent, and of the buffer where they are its
    :return: a small agent with hindsight
    """
    names = ("n_sampled_goal", "goal_selection_strategy", "copy_info_dict")
    buffer_kwargs = {name: kwargs.pop(name) for name in names if name in kwargs}
    return make_agent(
        algorithm,
        env,
        "MultiInputPolicy",
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=buffer_kwargs,
        **kwargs,
    )


def make_buffer(env: VecEnv, size: int = 100, **kwargs: Any) -> HerSequenceReplayBuffer:
    """
    :param env: environment
    :param size: rows
    :param kwargs: further arguments
    :return: empty buffer of windows of two transitions
    """
    spaces_of_env = (env.observation_space, env.action_space)
    buffer = HerSequenceReplayBuffer(
        size * env.num_envs, *spaces_of_env, "cpu", n_envs=env.num_envs, horizon=2, **kwargs
    )
    buffer.set_env(env)
    buffer.seed(0)
    return buffer


def fill(buffer: HerSequenceReplayBuffer, env: VecEnv, actions: list[Any], obs: Any = None) -> Any:
    """
    :param buffer: where the transitions go
    :param env: environment
    :param actions: actions of all environments, one after the other
    :param obs: observation to start from, that of a reset if None
    :return: the observation to go on from
    """
    obs = env.reset() if obs is None else obs
    for action in actions:
        action = np.broadcast_to(np.asarray(action, np.float32), (env.num_envs, *env.action_space.shape))
        after, rewards, dones, infos = env.step(action)
        final = copy.deepcopy(after)
        for i in np.flatnonzero(dones):
            for key in after:
                final[key][i] = infos[i]["terminal_observation"][key]
        buffer.add(obs, final, action, rewards, dones, infos)
        obs = after
    return obs


# --- windows ----------------------------------------------------------------------------------------------------------

FLIP = np.eye(3) * 2 - 1
# Flipping the bits 0, 1, 0 leads from 000 to 100, 110 and 010. By the start of the window: each goal with the rewards
TABLE = {
    "000": {"100": (0, -1), "110": (-1, 0), "010": (-1, -1)},
    "100": {"100": (-1, -1), "110": (0, -1), "010": (-1, 0)},
    "110": {"100": (-1, None), "110": (-1, None), "010": (0, None)},
}
CHOICES = {
    "future": {"000": {"100", "110", "010"}, "100": {"110", "010"}, "110": {"010"}},
    "final": {"000": {"010"}, "100": {"010"}, "110": {"010"}},
    "episode": {start: {"100", "110", "010"} for start in TABLE},
}


def bits(tensor: th.Tensor) -> str:
    """:return: bits as text"""
    return "".join(str(int(bit)) for bit in tensor)


@pytest.mark.parametrize("strategy", CHOICES)
@pytest.mark.parametrize("n_sampled_goal", [0, 1, 4])
def test_hand_checked_episode(strategy: str, n_sampled_goal: int) -> None:
    env = vec(Lock)
    buffer = make_buffer(env, n_sampled_goal=n_sampled_goal, goal_selection_strategy=strategy)
    fill(buffer, env, [FLIP[0], FLIP[1], FLIP[0]])
    batch = buffer.sample(200)
    relabelled = 200 * n_sampled_goal // (n_sampled_goal + 1)
    seen: dict[str, set[str]] = {start: set() for start in TABLE}
    for b in range(200):
        start = bits(batch.observations["observation"][0, b])
        goal, *others = (bits(part) for part in batch.observations["desired_goal"][:, b])
        assert others == [goal, goal]
        two_steps = start != "110"
        assert batch.mask[:, b].flatten().tolist() == [1, two_steps]
        assert batch.terminated[:, b].sum() == 0
        if b < 200 - relabelled:
            expected: tuple[int | None, ...] = (-1, -1)
            assert goal == "111"
        else:
            expected = TABLE[start][goal]
            seen[start].add(goal)
        assert batch.rewards[: 1 + two_steps, b].flatten().tolist() == [*expected][: 1 + two_steps]
    if n_sampled_goal:
        assert seen == CHOICES[strategy]


def test_terminations_stay_as_stored() -> None:
    """As in SB3: the episode ended where it ended, whatever the goal."""
    env = vec(lambda: ReachEnv(3, terminate=True))
    buffer = make_buffer(env)
    fill(buffer, env, [[0.5, 0.5]] * 6)
    batch = buffer.sample(100)
    assert batch.terminated[1][batch.mask[1] > 0].unique().tolist() == [0, 1]
    assert th.equal(batch.terminated[0] == 1, batch.mask[1] == 0)


def test_only_finished_episodes_are_sampled() -> None:
    env = vec(lambda: ReachEnv(4), lambda: ReachEnv(6))
    buffer = make_buffer(env)
    with pytest.raises(RuntimeError, match="Unable to sample before the end of the first episode"):
        buffer.sample(1)
    obs = fill(buffer, env, [[0.1, 0]] * 3)
    with pytest.raises(RuntimeError, match="Unable to sample before the end of the first episode"):
        buffer.sample(1)
    fill(buffer, env, [[0.1, 0]] * 4, obs)
    expected = {place.tobytes() for place in (*stored(buffer)[:4, 0], *stored(buffer)[:6, 1])}
    assert starts(buffer) == expected


def stored(buffer: HerSequenceReplayBuffer) -> np.ndarray:
    """:return: places that the stored transitions start from ``[rows, n_envs, 2]``"""
    return buffer.observations["achieved_goal"]  # type: ignore[call-overload]


def starts(buffer: HerSequenceReplayBuffer) -> set[bytes]:
    """:return: places that windows start from"""
    return {place.numpy().tobytes() for place in buffer.sample(500).observations["achieved_goal"][0]}


def test_episodes_that_are_overwritten_or_given_up() -> None:
    env = vec(lambda: ReachEnv(4))
    buffer = make_buffer(env, size=10)
    obs = fill(buffer, env, [[0.1, 0]] * 11)
    # The third episode runs, and has overwritten the first transition of the first one
    assert starts(buffer) == {place.tobytes() for place in stored(buffer)[4:8, 0]}
    fill(buffer, env, [[0.1, 0]] * 1, obs)
    assert starts(buffer) == {place.tobytes() for place in stored(buffer)[[4, 5, 6, 7, 8, 9, 0, 1], 0]}
    fill(buffer, env, [[0.1, 0]] * 2)
    fill(buffer, env, [[0.1, 0]] * 1)  # after a reset in the middle of an episode
    assert starts(buffer) == {place.tobytes() for place in stored(buffer)[[8, 9, 0, 1, 2, 3], 0]}
    batch = buffer.sample(500)
    given_up = (batch.observations["achieved_goal"][0] == th.from_numpy(stored(buffer)[3, 0])).all(1)
    assert given_up.any() and (batch.mask[1, given_up] == 0).all()
    buffer.reset()
    fill(buffer, env, [[0.1, 0]] * 4)
    assert len(starts(buffer)) == 4


def test_copies_go_on_alike() -> None:
    env = vec(ReachEnv, ReachEnv)
    buffer = make_buffer(env, copy_info_dict=True)
    obs = fill(buffer, env, [[0.2, 0.1]] * 7)
    after_seven = copy.deepcopy(env)
    for twin in (pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)):
        env = copy.deepcopy(after_seven)
        with pytest.raises(ValueError) as error:
            twin.sample(10)
        assert_one_clear_sentence(error.value, "HerReplayBuffer", "give env")
        twin.set_env(env)
        twin._rng, buffer._rng = np.random.default_rng(1), np.random.default_rng(1)
        for _ in range(2):
            assert_same_state(tuple(buffer.sample(10)), tuple(twin.sample(10)))
        fill(twin, env, [[0.2, 0.1]] * 3, copy.deepcopy(obs))
        assert twin.ep_length[5:10].tolist() == [[5, 5]] * 5


# --- agents -----------------------------------------------------------------------------------------------------------


def test_distillation_waits_for_the_first_episode() -> None:
    model = make_her(FacTDMPC, vec(lambda: ReachEnv(20)), learning_starts=30, distill_steps=2)
    with pytest.warns(UserWarning, match="Nothing is distilled yet.*before the end of the first episode"):
        model.learn(10)
    assert not model.policy.distilled
    assert model.learn(20, reset_num_timesteps=False).policy.distilled


def test_training(algorithm: Any) -> None:
    """Goals have been reached by the window's episode, and rewards are the environment's."""
    env = vec(lambda: ReachEnv(5), lambda: ReachEnv(4, terminate=True))
    kwargs: Any = dict(distill_steps=2) if algorithm is FacTDMPC else {}
    model = make_her(algorithm, env, copy_info_dict=True, learning_starts=12, train_freq=4, **kwargs).learn(52)
    assert model._n_updates > 0 and all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())
    buffer = model.replay_buffer
    assert isinstance(buffer, HerReplayBuffer)
    size = buffer.size()
    reached = buffer._following("achieved_goal", *np.indices((size, 2)).reshape(2, -1)).reshape(size, 2, 2)
    later = {}  # places reached from a transition to the end of its episode, and the transition's info
    for row, i in np.argwhere(buffer.ep_length[:size]):
        end = buffer.ep_start[row, i] + buffer.ep_length[row, i]
        later[stored(buffer)[row, i].tobytes()] = reached[row:end, i], range(row + 1 - buffer.ep_start[row, i], 9)
    batch = buffer.sample(100)
    observations = {key: part.numpy() for key, part in batch.observations.items()}
    goals = observations["desired_goal"]
    assert (goals == goals[0]).all()
    for b in range(20, 100):
        goal_is_reached = (later[observations["achieved_goal"][0, b].tobytes()][0] == goals[0, b]).all(1)
        assert goal_is_reached.any()
        for k in np.flatnonzero(batch.mask[:, b, 0]):
            info = {"weight": later[observations["achieved_goal"][0, b].tobytes()][1][k]}
            achieved = observations["achieved_goal"][k + 1, b]
            expected = ReachEnv().compute_reward(achieved[None], goals[k, b][None], [info])
            assert batch.rewards[k, b].item() == pytest.approx(expected[0], rel=1e-5)
    assert evaluate_policy(model, env, n_eval_episodes=1, warn=False)[0] < 0


@pytest.mark.parametrize("algorithm", [TDMPCSquare, BMPC])
def test_plans_for_other_goals_are_not_stored(algorithm: Any) -> None:
    model = make_her(algorithm, vec(ReachEnv), n_sampled_goal=1).learn(20)
    buffer = model.replay_buffer
    assert isinstance(buffer, HerPlanReplayBuffer)
    batch = buffer.sample(8)
    rows, envs = batch.buffer_index
    assert (rows[:, :4] >= 0).all() and (rows[:, 4:] == -1).all()
    np.testing.assert_array_equal(batch.plans[:, :, :4], np.moveaxis(buffer.plans[rows, envs], 2, 0)[:, :, :4])
    before = buffer.plans.copy()
    buffer.store_plans(np.full((2, 8, 2), 7.0), rows[0], envs[0])
    assert set(np.flatnonzero((buffer.plans == 7).all((1, 2, 3)))) == set(rows[0, :4])
    buffer.plans = before
    if algorithm is BMPC:
        model.reanalyze_batch_size = 8
        model.reanalyze(batch, 8, model._reanalyzer.draw(16, model.policy.generator, explore=True))
        changed = np.argwhere((buffer.plans != before).any((1, 2, 3)) & ~np.isnan(buffer.plans).any((1, 2, 3))).ravel()
        assert set(changed) <= set(rows[:, :4].ravel())


def test_reward_and_goals_are_normalised() -> None:
    env = VecNormalize(vec(ReachEnv), gamma=0.9)
    model = make_her(TDMPC2, env).learn(30)
    raw = pickle.loads(pickle.dumps(model.replay_buffer))
    raw.set_env(env)
    model.replay_buffer._rng, raw._rng = np.random.default_rng(1), np.random.default_rng(1)
    normalised, plain = model.replay_buffer.sample(50, env), raw.sample(50)
    expected = env.normalize_obs({key: part.numpy() for key, part in plain.observations.items()})
    for key, part in expected.items():
        np.testing.assert_allclose(normalised.observations[key], part, rtol=1e-5)
    np.testing.assert_allclose(normalised.rewards, env.normalize_reward(plain.rewards.numpy()), rtol=1e-5)


def test_before_the_first_episode_has_ended() -> None:
    model = make_her(TDMPC2, vec(lambda: ReachEnv(50)), learning_starts=10)
    with pytest.raises(RuntimeError, match="learning_starts"):
        model.learn(30)


def test_environments_in_processes() -> None:
    """They have no time limit to ask for, and compute rewards for the agent."""
    env = SubprocVecEnv([ReachEnv, ReachEnv], start_method="fork")  # type: ignore[list-item]
    try:
        model = make_her(TDMPC2, env, copy_info_dict=True, learning_starts=10).learn(20)
        assert model.gamma == 0.99 and model._n_updates > 0
    finally:
        env.close()


# --- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [TDMPC2, BMPC])
def test_save_and_load(algorithm: Any, tmp_path: Path) -> None:
    env = vec(ReachEnv)
    model = make_her(algorithm, env, n_sampled_goal=2, goal_selection_strategy="final").learn(20)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    assert type(loaded.replay_buffer) is type(model.replay_buffer)
    assert loaded.replay_buffer.her_ratio == model.replay_buffer.her_ratio == 1 - 1 / 3
    loaded.learn(20)
    acting = algorithm.load(tmp_path / "model")  # without an environment it acts
    observation = env.reset()
    np.testing.assert_array_equal(
        acting.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    acting.set_env(env)
    acting.learn(20)  # and learns when it is given one


def test_replay_buffer_of_a_run_that_is_over(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """The last episode is taken for finished, as in SB3, with its warning."""
    model = make_her(TDMPC2, vec(ReachEnv)).learn(18)
    model.save_replay_buffer(tmp_path / "buffer")
    for truncate in (False, True):
        other = make_her(TDMPC2, vec(ReachEnv))
        other.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=truncate)
        buffer = other.replay_buffer
        assert buffer.env is other.env and len(recwarn) == truncate
        assert buffer.ep_length[15:18, 0].tolist() == [3 * truncate] * 3
        assert (buffer.dones[17, 0], buffer.timeouts[17, 0]) == (truncate, truncate)
        other.learn(10)
        assert buffer.ep_length[15:18, 0].tolist() == [3, 3, 3]  # the run has not gone on: the episode was given up
    assert "The last trajectory in the replay buffer will be truncated" in str(recwarn.pop(UserWarning).message)


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    model = make_her(TDMPC2, vec(ReachEnv)).learn(18)
    model.save_replay_buffer(tmp_path / "buffer")
    del model.replay_buffer  # as scripts do that have no room for two
    model.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    model.learn(5, reset_num_timesteps=False)
    assert model.replay_buffer.ep_length[15:20, 0].tolist() == [5] * 5


def test_distilling_from_a_file(tmp_path: Path) -> None:
    model = make_her(TDMPC2, vec(ReachEnv)).learn(20)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    student = FacTDMPC.distill(model, tmp_path / "buffer.pkl", steps=2, distill_batch_size=8)
    assert student.policy.student is not None


# --- bad input --------------------------------------------------------------------------------------------------------


class NoReward(gym.Env):
    """A goal-conditioned environment without ``compute_reward``."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = ReachEnv().observation_space, ReachEnv().action_space


class OneReward(ReachEnv):
    """Computes one reward at a time."""

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
        return np.array([-np.linalg.norm(achieved - desired)])


class NoGoal(ReachEnv):
    """Has nothing to reach."""

    def __init__(self) -> None:
        super().__init__()
        del self.observation_space.spaces["desired_goal"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("env", "kwargs", "words"),
    [
        (NoGoal, {}, ["HerReplayBuffer", "desired_goal", "leave replay_buffer_class out"]),
        (NoReward, {}, ["HerReplayBuffer", "compute_reward", "add it"]),
        (ReachEnv, dict(goal_selection_strategy="past"), ["goal_selection_strategy", "past", "future"]),
        (ReachEnv, dict(n_sampled_goal=-1), ["n_sampled_goal", "0 or more"]),
    ],
)
def test_bad_settings(env: Any, kwargs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        make_her(TDMPC2, vec(env, seed=None), **kwargs)
    assert_one_clear_sentence(error.value, *words)


@pytest.mark.parametrize("name", ["online_sampling", "max_episode_length", "n_sampled_goals"])
def test_unknown_arguments(name: str) -> None:
    with pytest.raises(TypeError) as error:
        make_agent(
            TDMPC2,
            vec(ReachEnv),
            "MultiInputPolicy",
            replay_buffer_class=HerReplayBuffer,
            replay_buffer_kwargs={name: True},
        )
    assert_one_clear_sentence(error.value, "replay_buffer_kwargs", name, "n_sampled_goal|did you mean .sampling")


def test_it_has_its_own_rule_of_sampling() -> None:
    with pytest.raises(ValueError) as error:
        make_buffer(vec(ReachEnv), sampling="episodes")
    assert_one_clear_sentence(error.value, "HerReplayBuffer", "sampling", "leave")


def test_rewards_one_at_a_time() -> None:
    with pytest.raises(ValueError) as error:
        make_her(TDMPC2, vec(OneReward)).learn(20)
    assert_one_clear_sentence(error.value, "compute_reward", "arrays")
