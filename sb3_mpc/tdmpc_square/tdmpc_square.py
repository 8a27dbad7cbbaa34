"""TD-M(PC)²: TD-MPC2 with a policy prior that is constrained to the planner that collected the data."""

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_mpc.common.algorithm import inherited
from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.buffers.sources import RecordedData
from sb3_mpc.common.networks.gaussian import LOG_SQRT_2PI, gaussian_log_prob, squash_correction
from sb3_mpc.common.networks.losses import UpdateNoise, temporal_weights
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy
from sb3_mpc.common.presets import takes_preset
from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

SelfTDMPCSquare = TypeVar("SelfTDMPCSquare", bound="TDMPCSquare")

# Action dimensions of the HumanoidBench robot, to which the official weight of the constraint refers
REFERENCE_ACTION_DIM = 61
STD_OF_DATA = 2.0  # standard deviation that stands for the plan of transitions without one


def official_log_prob(log_prob: th.Tensor, action_dim: int, num_actions: th.Tensor | int) -> th.Tensor:
    """
    Log-density as in the official code: its constant is counted once, and it is multiplied by the number of actions.

    :param log_prob: log-density of a Gaussian ``[..., 1]``
    :param action_dim: its number of dimensions A
    :param num_actions: number n of dimensions that the task has, for all states or ``[..., 1]``
    :return: ``n (log_prob + (A - 1) ln(2 pi) / 2)`` as ``[..., 1]``
    """
    return num_actions * (log_prob + (action_dim - 1) * LOG_SQRT_2PI)


class TDMPCSquare(TDMPC2):
    """
    TD-M(PC)² (Lin, Wang, et al. 2025, https://arxiv.org/abs/2502.03550): TD-MPC2 with a policy constraint.

    TD-MPC2 learns values at actions of its prior, but the planner that collects the data does not take these actions;
    the values are therefore overestimated. Here the planner's Gaussian ``(mu_t, sigma_t)`` is stored with each
    transition, and the policy loss keeps the prior close to it:

    ``L = sum_t rho^t E[alpha log pi(a_t) - Q(z_t, a_t) / S] - beta w sum_t rho^t E[log N(a_t; mu_t, sigma_t)] / S``

    with ``a_t`` drawn from the prior, S the running scale of the values and a curriculum: the second term is left out
    as long as S is below a threshold. Everything else is TD-MPC2, whose arguments are accepted, too.

    Where paper and official code (https://github.com/DarthUtopian/tdmpc_square_public) differ, the code is followed.

    :param prior_coef: weight beta of the constraint
    :param scale_threshold: scale S of the values above which the constraint is active
    :param constraint_scaling: factor w for A action dimensions, "code" for ``A^2 / 61`` (as in the experiments with the
        official code), "readme" for ``A`` (its ten-line recipe), "paper" for 1
    """

    buffer_class = PlanReplayBuffer
    constraint_scalings: ClassVar[tuple[str, ...]] = ("code", "readme", "paper")

    @takes_preset
    def __init__(
        self,
        policy: str | type[WorldModelPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | str = "auto",
        batch_size: int = 256,
        tau: float = 0.01,
        gamma: float | str = "auto",
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        *,
        preset: str | None = None,
        horizon: int = 3,
        rho: float = 0.5,
        consistency_coef: float = 20.0,
        reward_coef: float = 0.1,
        value_coef: float = 0.1,
        termination_coef: float = 1.0,
        entropy_coef: float = 1e-4,
        enc_lr_scale: float = 0.3,
        max_grad_norm: float = 20.0,
        pretrain_gradient_steps: int | str = "auto",
        episodic: bool | str = "auto",
        iterations: int = 6,
        num_samples: int = 512,
        num_elites: int = 64,
        num_pi_trajs: int = 24,
        min_std: float = 0.05,
        max_std: float = 2.0,
        temperature: float = 0.5,
        compile: bool | str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        prior_coef: float = 1.0,
        scale_threshold: float = 2.0,
        constraint_scaling: str = "code",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        arguments = inherited(locals())
        if constraint_scaling not in self.constraint_scalings:
            raise ValueError(
                f"constraint_scaling={constraint_scaling!r} is unknown: use one of {self.constraint_scalings}."
            )
        self.prior_coef, self.scale_threshold = prior_coef, scale_threshold
        self.constraint_scaling = constraint_scaling
        super().__init__(**arguments)

    def policy_loss(
        self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """Values and entropy as in TD-MPC2's first version, and the constraint, at the H steps with an action."""
        model, scale, zs = self.policy.world_model, self.policy.running_scale, zs[:-1]
        action, log_prob, q = self.prior_values(zs, noise)
        scale.update(q[0])
        weights = temporal_weights(self.rho, zs) * batch.mask
        n, dim = model.num_actions(zs), model.action_dim
        squashed = official_log_prob(log_prob, dim, n) - squash_correction(action)
        q_loss = (weights * (self.entropy_coef * squashed - scale(q))).mean()
        mean, std = self.planned(batch)
        likelihood = official_log_prob(gaussian_log_prob((action - mean) / std, std.log()), dim, n)
        active = (scale.value > self.scale_threshold).to(q.dtype)
        constraint = -active * scale(weights * likelihood)
        factor = {"code": n / REFERENCE_ACTION_DIM, "readme": 1.0, "paper": 1 / n}[self.constraint_scaling]
        loss = q_loss + self.prior_coef * (factor * constraint).mean()
        logs = dict(pi_entropy=(squash_correction(action) - log_prob).mean(), pi_scale=scale.value.mean())
        logs |= dict(pi_q_loss=q_loss, pi_prior_loss=constraint.mean(), constraint_active=active.mean())
        return loss, logs

    def planned(self, batch: SequenceBatch) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: windows
        :return: mean and standard deviation of the planner ``[H, B, A]``; in transitions without a plan, such as those
            that a user has added, the executed action and 2 (official code)
        """
        mean, std = batch.plans_or(batch.actions, STD_OF_DATA)
        return mean, std.clamp(min=self.min_std)

    def plan_of_seeding(self, actions: np.ndarray) -> np.ndarray:
        """:return: the random actions, and the prior's largest standard deviation, hence a weak constraint"""
        std = np.full_like(actions, np.exp(self.policy.world_model.log_std_max))
        return np.stack([actions, std])

    def learn(
        self: SelfTDMPCSquare,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "TDMPCSquare",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        offline_data: RecordedData | None = None,
        offline_fraction: float | Schedule = 0.5,
        random_seeding: bool | str = "auto",
    ) -> SelfTDMPCSquare:
        """See :meth:`sb3_mpc.TDMPC2.learn`."""
        return super().learn(
            total_timesteps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
            offline_data=offline_data,
            offline_fraction=offline_fraction,
            random_seeding=random_seeding,
        )
