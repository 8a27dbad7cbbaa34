"""A method of your own: the policy network imitates the planner, and acts in its place once training is done."""

import argparse
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mpc import TDMPC2
from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.networks.gaussian import gaussian_log_prob
from sb3_mpc.common.networks.losses import UpdateNoise, temporal_weights
from sb3_mpc.common.planning.plan import Plan


class PlanImitation(TDMPC2):
    """
    World model and values of TD-MPC2; the policy maximises the likelihood of the planned actions.

    :param max_action: planned actions are clipped to this size, since the policy's tanh never reaches 1
    """

    buffer_class = PlanReplayBuffer  # keeps a plan with each transition
    trains_policy_in_pretraining = False  # seeding acts at random: there is no plan to imitate yet
    ranges: ClassVar[dict[str, tuple[float, ...]]] = {**TDMPC2.ranges, "max_action": (0, 1)}

    def __init__(self, *args: Any, max_action: float = 0.99, **kwargs: Any) -> None:
        self.max_action = max_action
        super().__init__(*args, **kwargs)

    def plan_to_store(self, plan: Plan) -> th.Tensor:
        """:return: mean and standard deviation of the elites' first action ``[2, E, A]``"""
        return th.stack([plan.mean[:, 0], plan.std[:, 0]])

    def policy_loss(
        self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """Negative log-likelihood of the stored plans' means in the predicted states, where there is a plan."""
        assert batch.planned is not None, "the replay buffer stores plans, and whether there is one"
        (planned, _), zs, known = batch.plans_or(0.0, 1.0), zs[:-1], batch.mask * batch.planned
        target = th.atanh(planned.clamp(-self.max_action, self.max_action))
        mean, log_std = self.policy.world_model.prior(zs)
        log_prob = gaussian_log_prob((target - mean) * (-log_std).exp(), log_std)
        loss = -(temporal_weights(self.rho, zs) * known * log_prob).sum() / known.sum().clamp(min=1)
        error = (known * (th.tanh(mean) - planned).abs().mean(-1, keepdim=True)).sum()
        return loss, dict(pi_error=error / known.sum().clamp(min=1))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        use_planner: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Act by the policy network alone, unless asked to plan; training always plans."""
        return super().predict(observation, state, episode_start, deterministic, use_planner)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2_000, help="agent decisions")
    small = dict(num_samples=64, num_elites=8, num_pi_trajs=8, iterations=3, batch_size=64)  # bearable on a CPU
    network = dict(latent_dim=32, net_arch=[64, 64], num_q=2)
    env = make_vec_env("Pendulum-v1")
    model = PlanImitation("MlpPolicy", env, verbose=1, policy_kwargs=network, **small)
    model.learn(parser.parse_args().steps)
    model.save("logs/imitation")
    model = PlanImitation.load("logs/imitation", env=env)
    for name, agent in (("Policy network alone", model), ("Planner", model.policy)):
        mean, std = evaluate_policy(agent, env, n_eval_episodes=5)
        print(f"{name}: return over 5 episodes: {mean:.0f} +- {std:.0f}")
