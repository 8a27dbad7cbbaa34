"""How far learned values are from returns."""

from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_mpc.common.callbacks.measurement import EpisodeMeasurement


class OverestimationCallback(EpisodeMeasurement):
    """
    Measure how far the learned values overestimate the returns (TD-M(PC)², section on value overestimation).

    The policy prior acts by its mode, without planning, for a number of episodes. Their mean discounted return is
    compared with the mean value of their first states. The results are ``value``, ``mc_return`` and ``relative``, the
    difference as a fraction of the return. The discount factor of an episode is that of its task. A return is cut off
    where its episode is truncated, so that episodes should be long compared with ``1 / (1 - gamma)`` steps.

    :param eval_env: see :class:`EpisodeMeasurement`
    :param eval_freq: see :class:`Measurement`
    :param n_eval_episodes: number of episodes
    :param verbose: see :class:`Measurement`
    :param folder: see :class:`Measurement`
    """

    name = "overestimation"

    def __init__(
        self,
        eval_env: GymEnv,
        eval_freq: int = 10_000,
        n_eval_episodes: int = 100,
        verbose: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(eval_env, eval_freq, n_eval_episodes, verbose, folder)

    def panels(self) -> dict[str, list[str]]:
        """:return: value and return together"""
        return {"at the first states of an episode": ["value", "mc_return"], "overestimation": ["relative"]}

    def measure(self) -> dict[str, float]:
        """:return: mean value of the first states, mean discounted return of their episodes, and relative difference"""
        policy, env, count = self.model.policy, self.eval_env, self.eval_env.num_envs
        policy.set_training_mode(False)
        actor, critic = policy.actor, policy.critic
        remaining = np.array([(self.n_eval_episodes + i) // count for i in range(count)])  # episodes per environment
        returns, discounts, gammas = np.zeros(count), np.ones(count), np.ones(count)
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
                    gammas[first] = self.discounts(tensor)[first]
            observation, rewards, dones, _ = env.step(policy.to_env_actions(action.cpu().numpy()))
            returns += discounts * rewards
            discounts *= gammas
            finished.extend(returns[dones & (remaining > 0)])
            remaining[dones] -= 1
            returns[dones], discounts[dones], first = 0.0, 1.0, dones
        value, mc_return = float(np.mean(values)), float(np.mean(finished))
        return dict(value=value, mc_return=mc_return, relative=(value - mc_return) / max(abs(mc_return), 1e-6))

    def discounts(self, observation: th.Tensor | dict[str, th.Tensor]) -> np.ndarray:
        """
        :param observation: observations ``[E, *shape]``, or a dict of them
        :return: discount factor of the task of each ``[E]``
        """
        world_model = self.model.policy.world_model
        z = world_model.encode(observation)
        gamma = world_model.discount(z, float(self.model.gamma))
        return np.broadcast_to(th.as_tensor(gamma, dtype=th.float64).cpu().numpy().reshape(-1), len(z))
