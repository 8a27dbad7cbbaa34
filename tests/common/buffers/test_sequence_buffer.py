"""The replay buffer gives the windows that a list of transitions gives, cut the slow and obvious way."""

import copy
import pickle
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from tests.support.agents import PointEnv, Recorder, assert_one_clear_sentence, assert_same_state, make_agent, vec

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
NESTED = spaces.Dict(place=OBSERVATIONS, picture=spaces.Box(0, 255, (1, 2, 2), np.uint8), number=spaces.Discrete(1000))
ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)


@dataclass
class Step:
    """One transition: names of the observations before and after it, what it brought and how it ended."""

    before: float
    after: float
    action: float
    reward: float
    terminated: bool
    ends: bool


@dataclass
class Lists:
    """
    Writes random episodes into a buffer and keeps them as lists, one for each environment.

    :param buffer: the buffer under test
    :param cut_chance: chance that an episode is given up without an end, as ``env.reset()`` does
    """

    buffer: SequenceReplayBuffer
    cut_chance: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.steps: list[list[Step]] = [[] for _ in range(self.buffer.n_envs)]
        self.names = self.rng.permutation(900).astype(float).tolist()
        self.now = [self.names.pop() for _ in range(self.buffer.n_envs)]
        self.following: dict[tuple[int, int], bool] = {}  # whether step t + 1 of environment e goes on from step t

    def observe(self, names: list[float]) -> Any:
        """
        :param names: one number for each environment
        :return: their observations
        """
        place = np.array([[name, -name] for name in names], np.float32)
        if not isinstance(self.buffer.observation_space, spaces.Dict):
            return place
        picture = np.array([np.full((1, 2, 2), name % 256) for name in names], np.uint8)
        return {"place": place, "picture": picture, "number": np.array(names, np.int64)}

    def add(self, length: int) -> None:
        """
        :param length: number of transitions to write for each environment
        """
        for _ in range(length):
            rows = []
            for env, steps in enumerate(self.steps):
                if steps and not steps[-1].ends and self.rng.random() < self.cut_chance:
                    steps[-1].ends = True  # given up: what follows is another episode
                    self.now[env] = self.names.pop()
                kind = self.rng.choice(["goes on", "goes on", "goes on", "terminated", "truncated"])
                step = Step(
                    self.now[env],
                    self.names.pop(),
                    *self.rng.uniform(-1, 1, 2).astype(np.float32).tolist(),
                    kind == "terminated",
                    kind != "goes on",
                )
                steps.append(step)
                rows.append((step, kind))
                self.now[env] = self.names.pop() if step.ends else step.after
            self.buffer.add(
                self.observe([step.before for step, _ in rows]),
                self.observe([step.after for step, _ in rows]),
                np.array([[step.action] for step, _ in rows]),
                np.array([step.reward for step, _ in rows]),
                np.array([kind != "goes on" for _, kind in rows]),
                [{"TimeLimit.truncated": kind == "truncated"} for _, kind in rows],
            )

    def windows(self) -> dict[float, tuple[list[float], list[Step]]]:
        """:return: by the name of its first observation: names of the observations and the steps of each window"""
        result = {}
        for steps in self.steps:
            stored = steps[-self.buffer.buffer_size :]
            for start in range(len(stored)):
                window = []
                for step in stored[start : start + self.buffer.horizon]:
                    window.append(step)
                    if step.ends:
                        break
                result[stored[start].before] = ([step.before for step in window] + [window[-1].after], window)
        return result


def make_buffer(
    size: int, n_envs: int = 1, space: spaces.Space = OBSERVATIONS, horizon: int = 3, **kwargs: Any
) -> SequenceReplayBuffer:
    """
    :param size: rows
    :param n_envs: environments
    :param space: of the observations
    :param horizon: transitions in a window
    :param kwargs: further arguments
    :return: an empty buffer
    """
    return SequenceReplayBuffer(size * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs, horizon=horizon, **kwargs)


def check_against_lists(buffer: SequenceReplayBuffer, lists: Lists, batch_size: int = 1000) -> None:
    """
    :param buffer: buffer
    :param lists: what was written to it
    :param batch_size: number of windows to look at
    """
    windows, seen = lists.windows(), set()
    batch = buffer.sample(batch_size)
    horizon, nested = buffer.horizon, isinstance(batch.observations, dict)
    assert batch.actions.shape == (horizon, batch_size, 1)
    assert batch.rewards.shape == batch.terminated.shape == batch.mask.shape == (horizon, batch_size, 1)
    place = batch.observations["place"] if nested else batch.observations
    assert place.shape == (horizon + 1, batch_size, 2)
    assert all(tensor.isfinite().all() for tensor in (place, *batch[1:5]))
    if nested:
        names = place[..., :1]
        valid = th.cat([th.ones(1, batch_size, 1), batch.mask]).bool()
        picture = batch.observations["picture"].flatten(2)
        assert picture.shape == (horizon + 1, batch_size, 4)
        assert th.equal((picture == names % 256) | ~valid, th.ones_like(picture, dtype=th.bool))
        assert th.equal((batch.observations["number"].view(names.shape) == names) | ~valid, th.ones_like(valid))
    observed, *tensors = (tensor.transpose(0, 1).squeeze(-1).tolist() for tensor in (place, *batch[1:5]))
    for b, (actions, rewards, terminated, mask) in enumerate(zip(*tensors, strict=True)):
        names, steps = windows[observed[b][0][0]]
        seen.add(names[0])
        n = len(steps)
        assert mask == [1.0] * n + [0.0] * (horizon - n)
        assert observed[b][: n + 1] == [[name, -name] for name in names]
        assert actions[:n] == [step.action for step in steps]
        assert rewards[:n] == [step.reward for step in steps]
        assert terminated[:n] == [float(step.terminated) for step in steps]
    assert seen == set(windows)  # every stored transition starts a window


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("cut_chance", [0.0, 0.3])
@pytest.mark.parametrize("space", [OBSERVATIONS, NESTED], ids=["box", "dict"])
def test_windows_are_those_of_the_slow_way(n_envs: int, horizon: int, cut_chance: float, space: spaces.Space) -> None:
    buffer = make_buffer(20, n_envs, space, horizon)
    lists = Lists(buffer, cut_chance)
    for length in (1, 1, 10, 8, 1, 13, 27):  # up to the brim, round and round again
        lists.add(length)
        check_against_lists(buffer, lists)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_buffer_may_be_smaller_than_a_window(size: int) -> None:
    buffer = make_buffer(size, n_envs=2, horizon=4)
    lists = Lists(buffer)
    for _ in range(12):
        lists.add(1)
        check_against_lists(buffer, lists, 100)
    assert buffer.size() == size and buffer.full


def test_starts_are_drawn_evenly() -> None:
    """Short episodes count as much for each of their transitions as long ones."""
    buffer = make_buffer(10, n_envs=2)
    Lists(buffer).add(14)
    starts, counts = np.unique(buffer.sample(20_000).observations[0, :, 0], return_counts=True)
    assert len(starts) == 20
    assert counts.min() > 850 and counts.max() < 1150  # 1000 expected, standard deviation 31


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("cut_chance", [0.0, 0.3])
def test_episodes_are_drawn_evenly_if_asked_for(n_envs: int, horizon: int, cut_chance: float) -> None:
    """The rule of the official codes: an ended episode, whatever its length, then a window that lies within it."""
    buffer = make_buffer(20, n_envs, horizon=horizon, sampling="episodes")
    lists = Lists(buffer, cut_chance)
    looked = 0
    for length in (1, 3, 10, 5, 1, 1, 13, 27):  # up to the brim, round and round again
        lists.add(length)
        episodes: list[list[float]] = [[]]
        for steps in lists.steps:
            for step in steps[-buffer.buffer_size :]:
                episodes[-1].append(step.before)
                if step.ends:
                    episodes.append([])
            episodes[-1] = []  # not ended yet
        starts = [episode[: len(episode) - horizon + 1] for episode in episodes if len(episode) >= horizon]
        if not starts:
            with pytest.raises(RuntimeError, match="No episode"):
                buffer.sample(1)
            continue
        looked += 1
        chances = {name: 1 / len(starts) / len(names) for names in starts for name in names}
        again = pickle.loads(pickle.dumps(buffer))
        batch = buffer.sample(5_000)
        assert (batch.mask == 1).all()
        names, counts = np.unique(batch.observations[0, :, 0], return_counts=True)
        assert set(names) == set(chances)
        assert counts / 5_000 == pytest.approx([chances[name] for name in names], abs=0.035)  # five deviations
        assert th.equal(again.sample(5_000).observations, batch.observations)
    assert looked >= 2


def test_memory_of_final_observations_is_used_again() -> None:
    buffer = make_buffer(10, n_envs=2)
    lists = Lists(buffer)
    lists.add(60)
    early = len(pickle.dumps(buffer))
    for _ in range(7):
        lists.names = np.random.default_rng(1).permutation(900).astype(float).tolist()
        lists.add(60)
    assert len(pickle.dumps(buffer)) < 1.5 * early


def test_content_is_copied_on_the_way_in_and_out() -> None:
    buffer = make_buffer(5)
    arrays = [
        np.ones((1, 2), np.float32),
        np.full((1, 2), 2, np.float32),
        np.full((1, 1), 0.5),
        np.ones(1),
        np.zeros(1),
    ]
    buffer.add(*arrays, [{}])
    for array in arrays:
        array[:] = 9
    first = buffer.sample(4)
    assert first.observations[0].unique().tolist() == [1] and first.observations[1].unique().tolist() == [2]
    assert first.actions[0].unique().tolist() == [0.5] and first.rewards[0].unique().tolist() == [1]
    first.observations.fill_(7)
    first.actions.fill_(7)
    second = buffer.sample(4)
    assert second.observations[0].unique().tolist() == [1] and second.actions[0].unique().tolist() == [0.5]


def test_types_of_samples() -> None:
    space = spaces.Dict(picture=spaces.Box(0, 255, (1, 2, 2), np.uint8), double=spaces.Box(-1.0, 1.0, (2,), np.float64))
    buffer = SequenceReplayBuffer(10, space, spaces.Box(-1, 1, (2, 2), np.float64), device="cpu", horizon=2)
    observation = {key: value[None] for key, value in space.sample().items()}
    buffer.add(observation, observation, np.zeros((1, 2, 2)), np.zeros(1), np.zeros(1), [{}])
    batch = buffer.sample(3)
    assert batch.observations["picture"].dtype == th.uint8  # a quarter of the traffic, divided by 255 in the encoder
    assert batch.observations["double"].dtype in (th.float32, th.float64)
    assert batch.actions.shape == (2, 3, 4)
    assert {tensor.dtype for tensor in batch[1:5]} == {th.float32}


def test_time_limits_may_count_as_terminations() -> None:
    for handle, expected in ((True, 0.0), (False, 1.0)):
        buffer = make_buffer(5, handle_timeout_termination=handle)
        buffer.add(
            np.zeros((1, 2)),
            np.ones((1, 2)),
            np.zeros((1, 1)),
            np.zeros(1),
            np.ones(1),
            [{"TimeLimit.truncated": True}],
        )
        assert buffer.sample(1).terminated[0].item() == expected


def test_normalisation() -> None:
    """Observations, the final one included, and rewards go through the statistics of VecNormalize at sampling time."""

    class Any2(PointEnv):
        """Two numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.observation_space, self.action_space = OBSERVATIONS, ACTIONS

        def observe(self) -> np.ndarray:
            return self.position.astype(np.float32)

    env = VecNormalize(vec(Any2), clip_obs=2.0, clip_reward=0.1, gamma=0.9)
    env.obs_rms.mean, env.obs_rms.var = np.array([3.0, -2.0]), np.array([1e5, 4e5])
    env.ret_rms.var = np.array(30.0)
    buffer = make_buffer(20)
    lists = Lists(buffer)
    lists.add(25)
    state = pickle.dumps(buffer)
    raw, normalised = pickle.loads(state).sample(50), pickle.loads(state).sample(50, env)
    np.testing.assert_allclose(normalised.observations, env.normalize_obs(raw.observations.numpy()), rtol=1e-6)
    np.testing.assert_allclose(normalised.rewards, env.normalize_reward(raw.rewards.numpy()), rtol=1e-6)
    assert normalised.rewards.abs().max() == pytest.approx(0.1)
    assert normalised.observations.dtype == normalised.rewards.dtype == th.float32
    for field_name in ("actions", "terminated", "mask"):
        assert th.equal(getattr(raw, field_name), getattr(normalised, field_name))


def test_normalisation_of_chosen_keys() -> None:
    class Nested(gym.Env):
        """Never stepped."""

        observation_space, action_space = NESTED, ACTIONS

    env = VecNormalize(DummyVecEnv([Nested]), norm_obs_keys=["place"], norm_reward=False)
    env.obs_rms["place"].mean, env.obs_rms["place"].var = np.array([3.0, -2.0]), np.array([1e5, 4e5])
    buffer = make_buffer(20, space=NESTED)
    Lists(buffer).add(25)
    state = pickle.dumps(buffer)
    raw, normalised = pickle.loads(state).sample(50), pickle.loads(state).sample(50, env)
    expected = env.obs_rms["place"]
    np.testing.assert_allclose(
        normalised.observations["place"],
        (raw.observations["place"].numpy() - expected.mean) / np.sqrt(expected.var + 1e-8),
        rtol=1e-5,
    )
    assert th.equal(raw.observations["picture"], normalised.observations["picture"])
    assert th.equal(raw.rewards, normalised.rewards)


@pytest.mark.parametrize("length", [0, 7, 33])
@pytest.mark.parametrize("space", [OBSERVATIONS, NESTED], ids=["box", "dict"])
def test_copies_go_on_alike(length: int, space: spaces.Space) -> None:
    """Pickled and deep copies hold the same, draw the same and take the same new transitions."""
    buffer = make_buffer(20, 2, space)
    lists = Lists(buffer, cut_chance=0.2)
    lists.add(length)
    for twin in (pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)):
        assert isinstance(twin, SequenceReplayBuffer) and twin.size() == buffer.size()
        other = copy.deepcopy(lists)
        other.buffer = twin
        other.add(9)
        check_against_lists(twin, other)
    if length > 0:
        twin = pickle.loads(pickle.dumps(buffer))
        for _ in range(3):
            assert_same_state(tuple(buffer.sample(10)), tuple(twin.sample(10)))


def test_seed_of_the_draws() -> None:
    buffer = make_buffer(20)
    Lists(buffer).add(20)
    draws = []
    for seed in (5, 5, 6):
        buffer.seed(seed)
        np.random.rand()  # the global generator has no part in it
        draws.append(buffer.sample(30).observations)
    assert th.equal(draws[0], draws[1]) and not th.equal(draws[0], draws[2])


def test_memory_is_claimed_by_the_first_transition() -> None:
    tracemalloc.start()
    try:
        buffer = SequenceReplayBuffer(10**6, spaces.Box(-1.0, 1.0, (20,), np.float32), ACTIONS, device="cpu")
        assert tracemalloc.get_traced_memory()[0] < 10**6
        assert len(pickle.dumps(buffer)) < 10**5  # saving it does not claim it either
        assert tracemalloc.get_traced_memory()[1] < 10**6
        assert buffer.size() == 0 and not buffer.full
        buffer.add(np.ones((1, 20)), np.ones((1, 20)), np.ones((1, 1)), np.ones(1), np.zeros(1), [{}])
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # observations once and not twice: 20 + 1 numbers of 4 bytes and a few flags for each transition
    assert 84 * 10**6 < allocated < 130 * 10**6
    assert len(pickle.dumps(buffer)) < 10**5  # unused rows do not travel


def test_sampling_from_an_empty_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        make_buffer(3).sample(1)


def test_it_is_a_replay_buffer_of_sb3() -> None:
    buffer = make_buffer(8, 2)
    assert isinstance(buffer, ReplayBuffer)
    lists = Lists(buffer)
    lists.add(5)
    for name, shape in dict(
        observations=(8, 2, 2), actions=(8, 2, 1), rewards=(8, 2), dones=(8, 2), timeouts=(8, 2)
    ).items():
        assert isinstance(getattr(buffer, name), np.ndarray) and getattr(buffer, name).shape == shape
    # extend() takes arrays of transitions
    rows = [
        getattr(buffer, name)[:5].copy() for name in ("observations", "observations", "actions", "rewards", "dones")
    ]
    buffer.extend(*rows, [[{"TimeLimit.truncated": bool(flag)} for flag in row] for row in buffer.timeouts[:5]])
    assert buffer.full and buffer.pos == 2
    np.testing.assert_array_equal(buffer.rewards[5:8], rows[3][:3])
    buffer.reset()
    assert buffer.size() == 0
    Lists(buffer).add(3)
    assert buffer.size() == 3


def test_names_of_sb3() -> None:
    buffer = make_buffer(8, 2, NESTED)
    assert buffer.rewards.shape == (8, 2) and buffer.next_observations["place"].shape == (0, 2, 2)
    lists = Lists(buffer, 0.3)
    lists.add(6)
    after = [[steps[row].after for steps in lists.steps] for row in range(6)]
    np.testing.assert_array_equal(buffer.next_observations["place"][..., 0], after)
    batch = buffer.sample(4)
    assert th.equal(batch.next_observations["place"], batch.observations["place"][1:])
    assert th.equal(batch.dones, batch.terminated)
    with pytest.raises(AttributeError, match="SequenceReplayBuffer has no attribute 'reward'"):
        _ = buffer.reward  # type: ignore[attr-defined]


@pytest.mark.parametrize("normalise", [False, True])
def test_training_fills_it_with_what_happened(algorithm: Any, normalise: bool) -> None:
    """Windows of a training run, across episode ends and a second ``learn``, are pieces of the recorded episodes."""
    recorders = [Recorder(PointEnv(3)), Recorder(PointEnv(5, terminate=True))]
    env: Any = vec(lambda: recorders[0], lambda: recorders[1])
    if normalise:
        env = VecNormalize(env, training=False, clip_obs=100.0)
    model = make_agent(algorithm, env, horizon=4, learning_starts=20)
    model.learn(44)
    model.learn(42)  # a reset in the middle of episodes
    model.set_env(env)
    model.learn(16, reset_num_timesteps=False)  # and another one
    rows = {}
    for recorder in recorders:
        for index, row in enumerate(recorder.log):
            rows[row[0].tobytes()] = (recorder.log, index)
    batch = model.replay_buffer.sample(500)
    assert {int(n) for n in batch.mask.sum(0).flatten()} == {1, 2, 3, 4}
    for b in range(500):
        log, start = rows[batch.observations[0, b].numpy().tobytes()]
        for k in range(4):
            if not batch.mask[k, b]:
                previous = log[start + k - 1]
                starts_anew = start + k == len(log) or log[start + k][0] is not previous[3]
                assert previous[4] or previous[5] or starts_anew  # no shorter than it has to be
                break
            observation, action, reward, after, terminated, _ = log[start + k]
            np.testing.assert_allclose(batch.observations[k, b], observation, atol=1e-6)
            np.testing.assert_allclose(batch.observations[k + 1, b], after, atol=1e-5 if normalise else 1e-6)
            low, high = model.action_space.low, model.action_space.high
            np.testing.assert_allclose(low + (batch.actions[k, b].numpy() + 1) / 2 * (high - low), action, atol=1e-5)
            assert batch.rewards[k, b].item() == pytest.approx(reward, rel=1e-5)
            assert batch.terminated[k, b].item() == terminated


def test_rule_of_sampling_belongs_to_the_agent(algorithm: Any, tmp_path: Path) -> None:
    """It is an argument, is kept by saving and given to loaded buffers, and trains; hindsight has its own rule."""
    kwargs = dict(sampling="episodes")
    model = make_agent(algorithm, vec(lambda: PointEnv(5)), replay_buffer_kwargs=kwargs).learn(20)
    assert model._n_updates > 0 and (model.replay_buffer.sample(100).mask == 1).all()
    model.save(tmp_path / "model")
    assert algorithm.load(tmp_path / "model", env=vec(lambda: PointEnv(5))).replay_buffer.sampling == "episodes"
    plain = make_agent(algorithm, vec(lambda: PointEnv(5))).learn(20)
    assert plain.replay_buffer.sampling == "transitions" and (plain.replay_buffer.sample(100).mask == 0).any()
    plain.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.sampling == "episodes" and (model.replay_buffer.sample(100).mask == 1).all()
    with pytest.raises(ValueError, match='"transitions" or "episodes"'):
        make_agent(algorithm, PointEnv(5), replay_buffer_kwargs=dict(sampling="episode"))


def test_a_buffer_that_holds_no_whole_episode_is_refused(algorithm: Any) -> None:
    """It would end a run in the middle, when nothing of an ended episode is left."""
    rule, envs = dict(sampling="episodes"), [lambda: TimeLimit(PointEnv(50), 20)] * 2
    for size in (30, 43):
        with pytest.raises(ValueError) as error:
            make_agent(algorithm, vec(*envs), buffer_size=size, replay_buffer_kwargs=rule)
        assert_one_clear_sentence(error.value, f"buffer_size={size}", "sampling", "use at least 44")
    model = make_agent(algorithm, vec(*envs), buffer_size=44, learning_starts=42, replay_buffer_kwargs=rule)
    model.learn(100)
    assert model._n_updates > 0
