"""Environments and small agents, and how to compare them."""

import os
import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_mpc
from sb3_mpc import FacTDMPC
from sb3_mpc.common.buffers.sequence_buffer import SequenceBatch

# Every test of the contract runs on each of these classes
ALGORITHMS: list[type[OffPolicyAlgorithm]] = list(sb3_mpc.ALGORITHMS.values())

DEVICE = os.environ.get("SB3_MPC_TEST_DEVICE", "cpu")
SMALL: dict[str, Any] = dict(horizon=2, num_samples=16, num_elites=4, num_pi_trajs=2, iterations=1, batch_size=16)
SMALL_POLICY: dict[str, Any] = dict(latent_dim=16, net_arch=[16], num_q=2, num_bins=11)


def make_agent(
    algorithm: type[OffPolicyAlgorithm],
    env: Any,
    policy: Any = "MlpPolicy",
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """
    :param algorithm: class to build
    :param env: environment, vectorised environment or name of one
    :param policy: alias or class
    :param policy_kwargs: replace or extend the test-sized ones
    :param kwargs: replace or extend the test-sized ones
    :return: a small agent, on the CPU, or the device that `python -m sb3_mpc.zoo gpu` runs the tests with
    """
    small_policy = {
        key: value for key, value in SMALL_POLICY.items() if key != "num_q" or "n_critics" not in (policy_kwargs or {})
    }
    settings = dict(SMALL, device=DEVICE, learning_starts=8, policy_kwargs={**small_policy, **(policy_kwargs or {})})
    if issubclass(algorithm, FacTDMPC):
        settings["distill_steps"] = 3  # and not as many as there were steps, after every learn()
    return algorithm(policy, env, **{**settings, **kwargs})


def training_alone(algorithm: type[OffPolicyAlgorithm]) -> dict[str, Any]:
    """
    :param algorithm: class to build
    :return: arguments by which nothing follows the training: FacTDMPC does not distil
    """
    return dict(distill_steps=0) if issubclass(algorithm, FacTDMPC) else {}


class PointEnv(gym.Env):
    """
    A point in the plane that actions push around, with the step count as third observation.

    :param length: truncate after this many steps
    :param terminate: end with ``terminated`` instead of ``truncated``
    :param start: fixed start; random (from the environment's own generator) if None
    :param observation_dtype: dtype of the observations
    """

    def __init__(
        self, length: int = 10, terminate: bool = False, start: float | None = None, observation_dtype: Any = np.float32
    ) -> None:
        self.observation_space = spaces.Box(-10, 10, (3,), observation_dtype)
        self.action_space = spaces.Box(np.array([-2, -1], np.float32), np.array([2, 3], np.float32))
        self.length, self.terminate, self.start = length, terminate, start
        self.position, self.steps = np.zeros(2), 0

    def observe(self) -> np.ndarray:
        """:return: observation ``[3]``"""
        return np.array([*self.position, self.steps / self.length], self.observation_space.dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.position = self.np_random.uniform(-1, 1, 2) if self.start is None else np.full(2, self.start)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, np.float32)), action
        self.steps += 1
        self.position = np.clip(self.position + 0.1 * np.asarray(action, np.float64), -9, 9)
        ended = self.steps >= self.length
        reward = -float(np.abs(self.position).sum())
        return self.observe(), reward, ended and self.terminate, ended and not self.terminate, {}


class SpaceEnv(gym.Env):
    """
    Random observations of any space, for any action space.

    :param observation_space: space of the observations
    :param action_space: space of the actions
    :param length: truncate after this many steps
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, length: int = 6) -> None:
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), 0.5, False, self.steps >= self.length, {}


class Recorder(gym.Wrapper):
    """Keeps every transition: (observation, action, reward, next observation, terminated, truncated)."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.log: list[tuple[Any, Any, float, Any, bool, bool]] = []
        self.observation: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.observation, info = self.env.reset(**kwargs)
        return self.observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        observation, reward, terminated, truncated, _ = result
        self.log.append((self.observation, np.array(action), float(reward), observation, terminated, truncated))
        self.observation = observation
        return result  # type: ignore[return-value]


def vec(*makers: Callable[[], gym.Env], seed: int | None = 0) -> DummyVecEnv:
    """
    :param makers: one function per environment
    :param seed: seed of the vectorised environment
    :return: the environments side by side
    """
    env = DummyVecEnv(list(makers))
    if seed is not None:
        env.seed(seed)
    return env


def two_envs(terminate: bool = False) -> DummyVecEnv:
    """
    :param terminate: whether the episodes of the first one terminate
    :return: two points whose episodes have three and five steps
    """
    return vec(lambda: PointEnv(3, terminate=terminate), lambda: PointEnv(5))


def sample_windows(model: Any, batch_size: int = 8) -> SequenceBatch:
    """
    :param model: agent, set to training mode
    :param batch_size: number of windows
    :return: windows from its replay buffer, as an update draws them
    """
    model.policy.set_training_mode(True)
    return model.replay_buffer.sample(batch_size)


def observations_of(env: Any, count: int, seed: int = 0) -> np.ndarray:
    """
    :param env: environment with a Box observation space
    :param count: how many
    :param seed: seed of the draws
    :return: different finite observations ``[count, *shape]``
    """
    shape = env.observation_space.shape
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(env.observation_space.dtype)


def value_of(model: Any, observation: Any) -> float:
    """
    :param model: agent
    :param observation: one observation
    :return: value that the ensemble gives to the action of the prior's mode in it
    """
    world_model = model.policy.world_model
    model.policy.set_training_mode(False)
    tensor = model.policy.obs_to_tensor(observation)[0]
    with th.no_grad():
        z, action = world_model.encode(tensor), model.policy.actor(tensor, deterministic=True)
        return world_model.two_hot.decode(world_model.value(z, action)).mean().item()


def assert_same_state(first: Any, second: Any, path: str = "") -> None:
    """
    Nested dicts, lists, arrays and tensors must be equal bit for bit.

    :param first: one structure
    :param second: the other
    :param path: where in the structure
    """
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same_state(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same_state(a, b, f"{path}/{index}")
    elif isinstance(first, th.Tensor):
        assert th.equal(first, second), f"{path} differs by up to {(first - second).abs().max()}"
    elif isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second, err_msg=path)
    else:
        assert first == second, f"{path}: {first} != {second}"


def assert_one_clear_sentence(error: BaseException, *words: str) -> None:
    """
    :param error: what was raised
    :param words: regular expressions that the message must contain, whatever the case
    """
    message = str(error)
    assert message.strip() and "\n" not in message.strip(), f"not one line: {message!r}"
    assert len(message) < 500, f"too long: {message!r}"
    for word in words:
        assert re.search(word, message, re.IGNORECASE), f"{word!r} is missing in {message!r}"
