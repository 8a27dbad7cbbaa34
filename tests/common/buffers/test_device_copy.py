"""Windows from the copy on the device are those from the host's memory; the CPU stands in for the device."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import BMPC, TDMPC2
from sb3_mpc.common.buffers import device_copy
from sb3_mpc.common.buffers.device_copy import DeviceCopy
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from tests.support.agents import PointEnv, assert_same_state, make_agent, two_envs, vec

ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
PLAIN = spaces.Box(-1, 1, (3,), np.float64)
DICT = spaces.Dict(image=spaces.Box(0, 255, (1, 4, 4), np.uint8), number=spaces.Box(-1, 1, (), np.float32))


def fill(buffer: SequenceReplayBuffer, rows: int, seed: int) -> None:
    """Episodes of three to six steps in two environments."""
    rng, space = np.random.default_rng(seed), buffer.observation_space
    space.seed(seed)

    def observe() -> Any:
        samples = [space.sample() for _ in range(2)]
        if isinstance(space, spaces.Dict):
            return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
        return np.stack(samples)

    observation = observe()
    for _ in range(rows):
        following, done = observe(), rng.random(2) < 0.25
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(rng.random() < 0.5)} for _ in range(2)]
        buffer.add(observation, following, rng.uniform(-1, 1, (2, 2)), rng.random(2), done, infos)
        reset = observe()
        for key in space.spaces if isinstance(space, spaces.Dict) else [None]:
            parts = (following, reset) if key is None else (following[key], reset[key])
            parts[0][done] = parts[1][done]
        observation = following


@pytest.mark.parametrize("space", [PLAIN, DICT], ids=["box", "dict"])
@pytest.mark.parametrize("sampling", ["transitions", "episodes"])
def test_windows_are_the_same(space: spaces.Space, sampling: str) -> None:
    buffers = [
        SequenceReplayBuffer(40, space, ACTIONS, "cpu", n_envs=2, sampling=sampling, storage=storage)
        for storage in ("host", "device")
    ]

    def assert_same() -> None:
        for seed in range(3):
            for buffer in buffers:
                buffer.seed(seed)
            host, device = (buffer.sample(32)._asdict() for buffer in buffers)
            assert_same_state(host, device)

    for rows in (15, 2, 30):  # 20 rows are kept
        for buffer in buffers:
            fill(buffer, rows, seed=rows)
        assert_same()
        assert buffers[1]._copy is not None and buffers[0]._copy is None
    buffers[1] = pickle.loads(pickle.dumps(buffers[1]))
    assert buffers[1]._copy is None, "it is made again, and not saved"
    assert_same()
    for buffer in buffers:
        buffer.reset()
        fill(buffer, 12, seed=1)
    assert_same()


@pytest.mark.parametrize("algorithm", [TDMPC2, BMPC])
def test_learning_is_the_same(algorithm: Any) -> None:
    runs = [
        make_agent(algorithm, two_envs(), seed=0, replay_buffer_kwargs=dict(storage=storage)).learn(24)
        for storage in ("host", "device")
    ]
    assert_same_state(*(model.get_parameters() for model in runs))


def test_normalised_observations_come_from_the_host() -> None:
    env = VecNormalize(vec(PointEnv))
    model = make_agent(TDMPC2, env, replay_buffer_kwargs=dict(storage="device")).learn(12)
    assert model.replay_buffer._copy is None


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="storage='disk' is unknown"):
        make_agent(TDMPC2, PointEnv(), replay_buffer_kwargs=dict(storage="disk"))
    with pytest.raises(ValueError, match="leave storage='device' out"):
        kwargs = dict(replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=dict(storage="device"))
        make_agent(TDMPC2, PointEnv(), **kwargs)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise th.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(device_copy.th, "empty", full)
    with pytest.raises(MemoryError, match='do not fit on cpu: use a smaller buffer_size, or storage="host"'):
        DeviceCopy({"": np.zeros((4, 1, 3), np.float32)}, 2, th.device("cpu"))
