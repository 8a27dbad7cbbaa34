"""Callbacks that measure during training."""

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_mpc.common.algorithm import WorldModelAlgorithm


class OverestimationCallback(BaseCallback):
    """
    Measure how far the learned values overestimate the returns (TD-M(PC)², section on value overestimation), for any
    method of this package.

    The policy prior acts by its mode, without planning, for a number of episodes. Their mean discounted return is
    compared with the mean value of their first states. Logged under ``overestimation/`` are ``value``, ``mc_return``
    and ``relative``, the difference as a fraction of the return. A return is cut off where its episode is truncated, so
    that episodes should be long compared with ``1 / (1 - gamma)`` steps.

    :param eval_env: separate environment to measure in, wrapped as the training environment is (with
        ``VecNormalize(..., training=False)`` if training normalises, rewards included)
    :param eval_freq: measure every ``eval_freq`` steps of the (vectorised) training environment
    :param n_eval_episodes: number of episodes
    :param verbose: whether to print the result
    """

    model: WorldModelAlgorithm

    def __init__(self, eval_env: GymEnv, eval_freq: int = 10_000, n_eval_episodes: int = 100, verbose: int = 0) -> None:
        super().__init__(verbose)
        if eval_freq < 1 or n_eval_episodes < 1:
            raise ValueError(f"{eval_freq=} and {n_eval_episodes=} must be at least 1.")
        self.eval_env = BaseAlgorithm._wrap_env(eval_env, monitor_wrapper=False)
        self.eval_freq, self.n_eval_episodes = eval_freq, n_eval_episodes
        self.results: list[tuple[int, float, float]] = []  # steps, value, discounted return

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            if self.model.get_vec_normalize_env() is not None:
                sync_envs_normalization(self.training_env, self.eval_env)
            value, mc_return = self.measure()
            self.results.append((self.num_timesteps, value, mc_return))
            relative = (value - mc_return) / max(abs(mc_return), 1e-6)
            for name, number in dict(value=value, mc_return=mc_return, relative=relative).items():
                self.logger.record(f"overestimation/{name}", number)
            if self.verbose > 0:
                print(f"Step {self.num_timesteps}: value {value:.2f}, discounted return {mc_return:.2f}")
        return True

    def measure(self) -> tuple[float, float]:
        """:return: mean value of the first states, and mean discounted return of their episodes"""
        policy, env, count = self.model.policy, self.eval_env, self.eval_env.num_envs
        policy.set_training_mode(False)
        actor, critic = policy.actor, policy.critic
        remaining = np.array([(self.n_eval_episodes + i) // count for i in range(count)])  # episodes per environment
        returns, discounts = np.zeros(count), np.ones(count)
        values: list[float] = []
        finished: list[float] = []
        first = np.ones(count, dtype=bool)
        observation = env.reset()
        while (remaining > 0).any():
            with th.no_grad():
                tensor, _ = policy.obs_to_tensor(observation)  # type: ignore[arg-type]
                action = actor(tensor, deterministic=True)
                if first.any():
                    q = th.stack(critic(tensor, action)).mean(0).flatten().cpu().numpy()
                    values.extend(q[first & (remaining > 0)])
            observation, rewards, dones, _ = env.step(policy.to_env_actions(action.cpu().numpy()))
            returns += discounts * rewards
            discounts *= float(self.model.gamma)
            finished.extend(returns[dones & (remaining > 0)])
            remaining[dones] -= 1
            returns[dones], discounts[dones], first = 0.0, 1.0, dones
        return float(np.mean(values)), float(np.mean(finished))
