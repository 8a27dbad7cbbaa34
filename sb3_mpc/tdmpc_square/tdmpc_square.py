"""TD-M(PC)²: TD-MPC2 with a policy prior that is constrained to the planner that collected the data."""

from typing import Any, ClassVar, NamedTuple, TypeVar

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
from sb3_mpc.common.presets import PRESETS, takes_preset
from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

SelfTDMPCSquare = TypeVar("SelfTDMPCSquare", bound="TDMPCSquare")

# Action dimensions of the HumanoidBench robot, to which the official weight of the constraint refers
REFERENCE_ACTION_DIM = 61
STD_OF_DATA = 2.0  # standard deviation that stands for the plan of transitions without one
BC_LIKELIHOODS = (-50_000.0, 0.0)  # bounds of the log-likelihoods in "bc" (official code)
LARGEST_CLONED = 0.999  # plans often end at the bounds of the action, where no squashed Gaussian has its mode

Loss = tuple[th.Tensor, dict[str, th.Tensor]]  # and values to log


class PriorDraw(NamedTuple):
    """
    Actions that the prior takes in the states of a batch.

    :param zs: latent states ``[H, B, D]``
    :param action: drawn actions ``[H, B, A]``
    :param log_prob: their log-densities before squashing ``[H, B, 1]``
    :param q: their values ``[H, B, 1]``
    """

    zs: th.Tensor
    action: th.Tensor
    log_prob: th.Tensor
    q: th.Tensor


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
    :param actor_mode: loss of the policy, by the names of the official code. "residual" is the method, the others are
        what its paper compares it with. "sac": without the constraint, as TD-MPC2. "bc": the likelihood of the plans
        alone (an infinite beta). "bc_sac": the squared distance from the replayed actions in place of the likelihood.
        "awac": the density of the replayed actions, weighted by the exponential of their advantage
        (https://arxiv.org/abs/2006.09359)
    :param awac_lambda: temperature of the advantages, which are in units of S
    :param exp_adv_min: lower bound of the weights of "awac"
    :param exp_adv_max: upper bound of the weights of "awac"
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    buffer_class = PlanReplayBuffer
    ranges: ClassVar[dict[str, tuple[float, ...]]] = {**TDMPC2.ranges, **dict(prior_coef=(0,), awac_lambda=(1e-6,))}
    relations: ClassVar[tuple[tuple[str, str], ...]] = (*TDMPC2.relations, ("exp_adv_min", "exp_adv_max"))
    choices: ClassVar[dict[str, tuple[str, ...]]] = dict(
        constraint_scaling=("code", "readme", "paper"), actor_mode=("residual", "sac", "bc", "bc_sac", "awac")
    )

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
        actor_mode: str = "residual",
        awac_lambda: float = 0.3333,
        exp_adv_min: float = 0.1,
        exp_adv_max: float = 10.0,
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        arguments = inherited(locals())
        self.actor_mode = actor_mode
        self.awac_lambda, self.exp_adv_min, self.exp_adv_max = awac_lambda, exp_adv_min, exp_adv_max
        self.prior_coef, self.scale_threshold = prior_coef, scale_threshold
        self.constraint_scaling = constraint_scaling
        super().__init__(**arguments)

    # -- Policy --------------------------------------------------------------------------------------------------------

    def policy_loss(
        self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """Loss of ``actor_mode``, at the H steps with an action."""
        scale, prior = self.policy.running_scale, PriorDraw(zs[:-1], *self.prior_values(zs[:-1], noise))
        scale.update(prior.q[0])
        loss, logs = getattr(self, f"{self.actor_mode}_loss")(prior, batch, noise)
        entropy = (squash_correction(prior.action) - prior.log_prob).mean()
        return loss, logs | dict(pi_entropy=entropy, pi_scale=scale.value.mean())

    def sac_loss(self, prior: PriorDraw, batch: SequenceBatch, noise: UpdateNoise) -> Loss:
        """
        :param prior: actions of the prior
        :param batch: windows
        :param noise: random numbers
        :return: loss of values and entropy as in TD-MPC2's first version, and values to log
        """
        n, dim = self.policy.world_model.num_actions(prior.zs), self.policy.world_model.action_dim
        squashed = official_log_prob(prior.log_prob, dim, n) - squash_correction(prior.action)
        per_step = self.entropy_coef * squashed - self.policy.running_scale(prior.q)
        loss = (self.weights(batch) * per_step).mean()
        return loss, dict(pi_q_loss=loss)

    def residual_loss(self, prior: PriorDraw, batch: SequenceBatch, noise: UpdateNoise) -> Loss:
        """:meth:`sac_loss` and the constraint, once the scale is above its threshold."""
        scale, n = self.policy.running_scale, self.policy.world_model.num_actions(prior.zs)
        q_loss, logs = self.sac_loss(prior, batch, noise)
        active = (scale.value > self.scale_threshold).to(prior.q.dtype)
        constraint = -active * scale(self.weights(batch) * self.likelihood(prior, batch))
        factor = {"code": n / REFERENCE_ACTION_DIM, "readme": 1.0, "paper": 1 / n}[self.constraint_scaling]
        loss = q_loss + self.prior_coef * (factor * constraint).mean()
        return loss, logs | dict(pi_prior_loss=constraint.mean(), constraint_active=active.mean())

    def bc_loss(self, prior: PriorDraw, batch: SequenceBatch, noise: UpdateNoise) -> Loss:
        """Likelihood of the prior's actions under the plans, alone; densities above one are not raised further."""
        likelihood = self.likelihood(prior, batch).clamp(*BC_LIKELIHOODS)
        loss = -(self.weights(batch) * self.policy.running_scale(likelihood)).mean()
        return loss, dict(pi_prior_loss=loss)

    def bc_sac_loss(self, prior: PriorDraw, batch: SequenceBatch, noise: UpdateNoise) -> Loss:
        """:meth:`sac_loss` and the squared distance of the prior's actions from the replayed ones."""
        q_loss, logs = self.sac_loss(prior, batch, noise)
        distance = (prior.action - batch.actions).square().sum(-1, keepdim=True)
        cloning = (self.weights(batch) * distance).mean()
        return q_loss + self.prior_coef * cloning, logs | dict(pi_prior_loss=cloning)

    def awac_loss(self, prior: PriorDraw, batch: SequenceBatch, noise: UpdateNoise) -> Loss:
        """Negative log-density of the replayed actions, weighted by the exponential of their advantage."""
        preference = (self.advantage(prior, batch, noise) / self.awac_lambda).exp()
        preference = preference.clamp(self.exp_adv_min, self.exp_adv_max)
        loss = -(self.weights(batch) * preference * self.log_prob(prior.zs, batch.actions)).mean()
        return loss, dict(pi_prior_loss=loss, pi_awac_weight=preference.mean())

    def advantage(self, prior: PriorDraw, batch: SequenceBatch, noise: UpdateNoise) -> th.Tensor:
        """
        :param prior: actions of the prior
        :param batch: windows
        :param noise: random numbers
        :return: how much better the replayed actions are than those of the prior, in units of S, without gradient
            ``[H, B, 1]``. (The official code has the opposite sign.)
        """
        model, dropout = self.policy.world_model, noise.policy_dropout
        with th.no_grad():
            mask = None if dropout is None else dropout[:, : len(prior.zs)]
            q = model.two_hot.decode(model.value(prior.zs, batch.actions, noise.policy_members, mask)).mean(0)
            advantage: th.Tensor = self.policy.running_scale(q - prior.q)
        return advantage

    def log_prob(self, zs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param zs: latent states ``[H, B, D]``
        :param actions: ``[H, B, A]``
        :return: their log-densities under the prior ``[H, B, 1]``. (The official code leaves the tanh out.)
        """
        mean, log_std = self.policy.world_model.prior(zs)
        actions = actions.clamp(-LARGEST_CLONED, LARGEST_CLONED)
        noise = (th.atanh(actions) - mean) / log_std.exp()
        return gaussian_log_prob(noise, log_std) - squash_correction(actions)

    def likelihood(self, prior: PriorDraw, batch: SequenceBatch) -> th.Tensor:
        """
        :param prior: actions of the prior
        :param batch: windows
        :return: their log-densities under the planner's Gaussians, as the official code counts them ``[H, B, 1]``
        """
        model, (mean, std) = self.policy.world_model, self.planned(batch)
        log_prob = gaussian_log_prob((prior.action - mean) / std, std.log())
        return official_log_prob(log_prob, model.action_dim, model.num_actions(prior.zs))

    def weights(self, batch: SequenceBatch) -> th.Tensor:
        """
        :param batch: windows
        :return: weights of the steps in the loss ``[H, B, 1]``
        """
        return temporal_weights(self.rho, batch.mask) * batch.mask

    # -- Plans ---------------------------------------------------------------------------------------------------------

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
