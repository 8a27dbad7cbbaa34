"""ManiSkill's parallel simulation as one of SB3's vectorised environments."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class ManiSkillVecEnv(VecEnv):
    """
    Many environments in one simulation, under the protocol of ``ControlInterface``: actions in [-1, 1], repeated
    actions, summed rewards, time limits in decisions. An environment whose episode has ended is reset alone.

    :param env: ManiSkill's environment
    :param spec: spec of the id, which has the time limit
    :param action_repeat: steps of ManiSkill per decision
    :param terminates: whether ManiSkill's terminations end an episode
    """

    def __init__(self, env: Any, spec: EnvSpec, action_repeat: int, terminates: bool) -> None:
        self.env, self.spec, self.render_mode = env, spec, None
        self.action_repeat, self.terminates = action_repeat, terminates
        native = env.get_wrapper_attr("single_action_space")
        observations = env.get_wrapper_attr("single_observation_space")
        self.device = env.get_wrapper_attr("device")
        self._low, self._high = (th.as_tensor(bound, device=self.device) for bound in (native.low, native.high))
        self._decisions = np.zeros(env.get_wrapper_attr("num_envs"), dtype=np.int64)
        self._actions = np.zeros((len(self._decisions), *native.shape), dtype=np.float32)
        super().__init__(
            len(self._decisions),
            gym.spaces.Box(-np.inf, np.inf, observations.shape, np.float32),
            gym.spaces.Box(-1.0, 1.0, native.shape, np.float32),
        )

    def reset(self) -> VecEnvObs:
        """:return: the first observations [num_envs, D] of new episodes"""
        seed = self._seeds[0]
        self._reset_seeds()
        observations, _ = self.env.reset(seed=seed, options={"reconfigure": seed is not None})
        self._decisions[:] = 0
        return np.asarray(observations.cpu().numpy())

    def step_async(self, actions: np.ndarray) -> None:
        """
        Keep the actions for :meth:`step_wait`.

        :param actions: actions [num_envs, A] in [-1, 1]
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """:return: observations [num_envs, D], rewards and ends [num_envs] after one decision, and infos"""
        actions = th.as_tensor(self._actions, device=self.device, dtype=th.float32)
        native = self._low + (self._high - self._low) * (actions + 1) / 2
        terminated = th.zeros(self.num_envs, dtype=th.bool, device=self.device)
        rewards = th.zeros(self.num_envs, device=self.device)
        observations = successes = None
        for _ in range(self.action_repeat):
            latest, reward, ended, _, info = self.env.step(native)
            success = {key: info[key].bool() for key in ("success",) if key in info}
            if observations is None or successes is None:
                observations, successes = latest, success
            else:  # environments that terminated before the last repetition keep what they returned then
                observations = th.where(terminated[:, None], observations, latest)
                successes = {key: th.where(terminated, successes[key], success[key]) for key in success}
            rewards += th.where(terminated, th.zeros_like(rewards), reward)
            if self.terminates:
                terminated = terminated | ended.bool()
        assert observations is not None and successes is not None
        self._decisions += 1
        ends = terminated.cpu().numpy()
        truncated = ~ends & (self._decisions >= (self.spec.max_episode_steps or np.inf))
        done = ends | truncated
        after = observations.cpu().numpy()
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in truncated]
        for values in successes.values():
            for info, value in zip(infos, values.cpu().numpy(), strict=True):
                info["success"] = info["is_success"] = bool(value)
        if done.any():
            indices = np.flatnonzero(done)
            for index in indices:
                infos[index]["terminal_observation"] = after[index]
            fresh, _ = self.env.reset(options={"env_idx": th.as_tensor(indices, device=self.device)})
            after = np.where(done[:, None], fresh.cpu().numpy(), after)
            self._decisions[done] = 0
        return after, rewards.cpu().numpy(), done, infos

    def close(self) -> None:
        """Free the simulation."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """:return: the attribute of this object, or else of ManiSkill's environment, for each index"""
        value = getattr(self, attr_name) if hasattr(self, attr_name) else self.env.get_wrapper_attr(attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute, which all environments share."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of ManiSkill's environment, which all share, once."""
        result = self.env.get_wrapper_attr(method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """:return: False for each index: no single environment has a wrapper"""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """:return: None for each environment: rendering is not supported"""
        return [None] * self.num_envs
