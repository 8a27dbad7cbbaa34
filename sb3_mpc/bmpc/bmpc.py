"""BMPC: a policy that imitates the planner, which in turn uses the policy and its values."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_mpc.bmpc.planner import (
    ClampedPriorModel,
    ExploringPlanner,
    ReanalyzePlanner,
    StateValueModel,
    StateValuePlanner,
)
from sb3_mpc.common import processes
from sb3_mpc.common.algorithm import WorldModelAlgorithm, inherited
from sb3_mpc.common.buffers.batch import SequenceBatch
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.buffers.sources import RecordedData
from sb3_mpc.common.networks.gaussian import gaussian_kl, gaussian_log_prob
from sb3_mpc.common.networks.losses import UpdateNoise, n_step_targets, temporal_weights, time_slice
from sb3_mpc.common.planning.plan import Plan, PlanNoise
from sb3_mpc.common.planning.planner import MPPIPlanner
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy
from sb3_mpc.common.presets import takes_preset

SelfBMPC = TypeVar("SelfBMPC", bound="BMPC")

# Classes of the world model and of the planner, and that of the reanalysis, by what the values are of
CLASSES: dict[str, tuple[type[ClampedPriorModel], type[MPPIPlanner], type[ExploringPlanner]]] = {
    "states": (StateValueModel, StateValuePlanner, ReanalyzePlanner),
    "actions": (ClampedPriorModel, MPPIPlanner, ExploringPlanner),
}


class BMPC(WorldModelAlgorithm):
    """
    Bootstrapped model-predictive control (Wang, Guo, et al. 2025, https://arxiv.org/abs/2503.18871).

    The policy pi imitates the planner, and the planner improves with the policy, which it uses for its proposals and
    values. With the planner's Gaussians ``N(mu_t, sigma_t)`` stored in the replay buffer, the policy loss is

    ``L_pi = sum_t rho^t E[KL(pi(.|z_t) || N(mu_t, sigma_t)) / S - alpha H(pi(.|z_t))]``

    where S is the running scale of the divergence. State values are learned from rollouts of the policy in the model,
    which start in replayed states: ``y = sum_{k<N} gamma^k R(z_k, a_k) + gamma^N V'(z_N)`` with ``z_0 = h(o_t)`` and
    actions ``a_k`` of the policy. Stored Gaussians become outdated; every ``reanalyze_interval`` updates some are
    planned again ("lazy reanalyze") and written back.

    The arguments of :class:`sb3_mpc.TDMPC2` are accepted, too. The policy has two value networks and log standard
    deviations in [-3, 1] by default. Where paper and official code (https://github.com/wertyuilife2/bmpc) differ, the
    code is followed. The official code ignores terminations, as ``episodic=False`` does; by default, predicted
    terminations end plans and the rollouts of the value target.

    :param td_horizon: number N of model steps in the value target
    :param reanalyze_interval: number of updates between reanalyses; 0 for none
    :param reanalyze_batch_size: number of windows in a reanalysis, all states of which are planned again
    :param expl_log_std_min: smallest log standard deviation of the policy's proposals in a reanalysis
    :param expl_log_std_max: largest log standard deviation of these proposals
    :param kl_direction: "reverse" for ``KL(pi || expert)`` (official code), "forward" for ``KL(expert || pi)``
    :param expert_mean: mean that the policy imitates: "elite" for the first action of the chosen elite (official code),
        "mean" for the mean of the planner's Gaussian
    :param values_of: "states" as above; "actions" for values Q of states and actions, learned from the replayed
        transitions as in TD-MPC2, ``y = r_t + gamma mean Q'(z_{t+1}, a)`` (official code with
        ``use_v_instead_q=false``; ``td_horizon`` has no effect, ``n_steps`` has one)
    :param imitation_loss: "kl" as above; "log_prob" for the negative log-density of the expert's mean, per action
        dimension, where there is a plan
    :param reanalyze_horizon: horizon of the plans of a reanalysis; "auto" for ``horizon``
    """

    buffer_class = PlanReplayBuffer
    ranges: ClassVar[dict[str, tuple[float, ...]]] = {
        **WorldModelAlgorithm.ranges,
        **dict(td_horizon=(1, 1_000), reanalyze_batch_size=(1,), reanalyze_horizon=(1, 1_000)),
        **dict.fromkeys(("expl_log_std_min", "expl_log_std_max"), (-20, 10)),
    }
    relations: ClassVar[tuple[tuple[str, str], ...]] = (
        *WorldModelAlgorithm.relations,
        ("expl_log_std_min", "expl_log_std_max"),
    )
    choices: ClassVar[dict[str, tuple[str, ...]]] = dict(
        kl_direction=("reverse", "forward"),
        expert_mean=("elite", "mean"),
        values_of=tuple(CLASSES),
        imitation_loss=("kl", "log_prob"),
    )
    policy_defaults: ClassVar[dict[str, Any]] = dict(
        n_critics=2,
        log_std_min=-3.0,
        log_std_max=1.0,
        world_model_class=StateValueModel,
        planner_class=StateValuePlanner,
    )
    trains_policy_in_pretraining: ClassVar[bool] = False

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
        td_horizon: int = 1,
        reanalyze_interval: int = 10,
        reanalyze_batch_size: int = 20,
        expl_log_std_min: float = -2.0,
        expl_log_std_max: float = 1.0,
        kl_direction: str = "reverse",
        expert_mean: str = "elite",
        values_of: str = "states",
        imitation_loss: str = "kl",
        reanalyze_horizon: int | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        arguments = inherited(locals())
        self.td_horizon, self.kl_direction, self.expert_mean = td_horizon, kl_direction, expert_mean
        self.values_of, self.imitation_loss = values_of, imitation_loss
        if values_of == "states" and n_steps != 1:
            raise ValueError(
                f"{n_steps=} counts replayed rewards, which values of states are not learned from: use td_horizon for "
                'longer targets within the model, or values_of="actions".'
            )
        self.reanalyze_interval, self.reanalyze_batch_size = reanalyze_interval, reanalyze_batch_size
        self.expl_log_std_min, self.expl_log_std_max = expl_log_std_min, expl_log_std_max
        self._updates_to_reanalyze = reanalyze_interval
        self.reanalyze_horizon = reanalyze_horizon
        super().__init__(**arguments)

    def _make_policy(self) -> None:
        super()._make_policy()
        horizon = self.horizon if isinstance(self.reanalyze_horizon, str) else self.reanalyze_horizon
        # The user's planner_kwargs that every planner has hold for the reanalysis, too
        given = self.policy_arguments()["planner_kwargs"]
        arguments = {name: given[name] for name in self.planner_arguments()}
        self._reanalyzer = self.make_reanalyzer(
            log_std_range=(self.expl_log_std_min, self.expl_log_std_max), **{**arguments, "horizon": horizon}
        )

    def make_reanalyzer(self, **arguments: Any) -> MPPIPlanner:
        """
        :param arguments: of the planner, and the bounds of the log standard deviation of its proposals
        :return: planner of the reanalysis; a variant may have another one
        """
        return CLASSES[self.values_of][2](self.policy.world_model, **arguments)

    def policy_arguments(self) -> dict[str, Any]:
        """:return: arguments of the policy, with the classes for the kind of values"""
        classes = dict(zip(("world_model_class", "planner_class"), CLASSES[self.values_of], strict=False))
        changed = {name: value for name, value in classes.items() if name not in self.policy_kwargs}
        return super().policy_arguments() | changed

    def forget_compiled(self) -> None:
        """See :meth:`WorldModelAlgorithm.forget_compiled`; here the reanalysis, too."""
        super().forget_compiled()
        self._compiled_replan: Callable[..., Plan] | None = None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_reanalyzer", "_compiled_replan"]

    # -- Value and policy ----------------------------------------------------------------------------------------------

    def draw_noise(self, batch_size: int) -> UpdateNoise:
        """:return: random numbers of one update, those of the value target ``[N, H, B, A]``"""
        noise, generator = super().draw_noise(batch_size), self.policy.generator
        shape = (self.td_horizon, *noise.target_actions.shape)
        return noise._replace(target_actions=th.randn(shape, generator=generator, device=generator.device))

    def value_target(self, next_z: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> th.Tensor:
        """:return: targets of the values of states, or of states and actions ``[H, B, 1]``"""
        target = self.target_of_states if self.values_of == "states" else self.target_of_actions
        return target(next_z, batch, noise)

    def target_of_actions(self, next_z: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> th.Tensor:
        """Replayed reward plus discounted mean of two target values at an action of the policy in the next state."""
        model = self.policy.world_model
        action = model.act(next_z, noise.target_actions[0])
        values = model.two_hot.decode(model.value(next_z, action, noise.target_members, target=True))
        factors = model.discount(next_z, self.gamma) * self.continues(batch)
        return n_step_targets(batch.rewards, factors, values.mean(0), batch.mask, self.n_steps)

    def target_of_states(self, next_z: th.Tensor, batch: SequenceBatch, noise: UpdateNoise) -> th.Tensor:
        """Rewards of an N-step rollout of the policy in the model from the encoded observations, plus target value."""
        model = self.policy.world_model
        first = model.encode(time_slice(batch.observations, 0), None if noise.shift is None else noise.shift[0])
        z = th.cat([first.unsqueeze(0), next_z[:-1]])
        target, discount = th.zeros_like(batch.rewards), th.ones_like(batch.rewards)
        for eps in noise.target_actions:
            action = model.act(z, eps)
            target = target + discount * model.two_hot.decode(model.reward(z, action))
            z = model.next(z, action)
            discount = discount * model.discount(z, self.gamma) * model.continues(z)
        values = model.two_hot.decode(model.value(z, members=noise.target_members, target=True))
        return target + discount * values.mean(0)

    def policy_loss(
        self, zs: th.Tensor, batch: SequenceBatch, noise: UpdateNoise
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """Distance from the stored plans, and entropy before clamping."""
        model, scale, zs = self.policy.world_model, self.policy.running_scale, zs[:-1]
        assert isinstance(model, ClampedPriorModel)
        mean, log_std = model.gaussian(zs)
        error = self.imitation_error(zs, mean, log_std, batch)
        scale.update(error[0])
        log_prob = gaussian_log_prob(model.mask_actions(zs, noise.policy_actions[: len(zs)]), log_std)
        entropy = -model.num_actions(zs) * log_prob  # scaled by the number of actions as in TD-MPC2
        weights = temporal_weights(self.rho, zs) * batch.mask
        loss = (weights * (scale(error) - self.entropy_coef * entropy)).mean()
        logs = dict(pi_entropy=-log_prob.mean(), pi_scale=scale.value.mean())
        return loss, logs | {f"pi_{self.imitation_loss}": error.mean()}

    def imitation_error(self, zs: th.Tensor, mean: th.Tensor, log_std: th.Tensor, batch: SequenceBatch) -> th.Tensor:
        """
        :param zs: predicted latent states ``[H, B, D]``
        :param mean: mean of the policy in [-1, 1] ``[H, B, A]``
        :param log_std: its log standard deviation ``[H, B, A]``
        :param batch: windows with stored plans
        :return: mean over the action dimensions of the KL divergence between policy and plan, a standard normal where
            there is none; or of the negative log-density of the plan's mean, zero where there is none ``[H, B, 1]``
        """
        model, std = self.policy.world_model, log_std.exp()
        expert, count = model.mask_gaussian(zs, *batch.plans_or(0.0, 1.0)), model.num_actions(zs)
        if self.imitation_loss == "log_prob":
            error = -gaussian_log_prob((expert[0] - mean) / std, log_std) / count
            return error if batch.planned is None else error * batch.planned
        pair = (mean, std, *expert) if self.kl_direction == "reverse" else (*expert, mean, std)
        return gaussian_kl(*pair).sum(-1, keepdim=True) / count

    # -- Plans to imitate ----------------------------------------------------------------------------------------------

    def plan_to_store(self, plan: Plan) -> th.Tensor:
        """:return: mean and standard deviation of the first action, which the policy imitates ``[2, E, A]``"""
        mean = plan.elite_action if self.expert_mean == "elite" else plan.mean[:, 0]
        return th.stack([mean, plan.std[:, 0]])

    def refresh_batch(self, batch: SequenceBatch) -> SequenceBatch:
        """Lazy reanalyze: in every ``reanalyze_interval``-th update, plan again for some states of the batch."""
        if self.reanalyze_interval <= 0:
            return batch
        self._updates_to_reanalyze -= 1
        if self._updates_to_reanalyze > 0:
            return batch
        self._updates_to_reanalyze = self.reanalyze_interval
        count = min(processes.part(self.reanalyze_batch_size), batch.actions.shape[1])
        noise = self._reanalyzer.draw(self.horizon * count, self.policy.generator, explore=True)
        return self.reanalyze(batch, count, noise)

    def reanalyze(self, batch: SequenceBatch, count: int, noise: PlanNoise) -> SequenceBatch:
        """
        :param batch: windows
        :param count: number of windows to plan again, the first ones of the batch
        :param noise: random numbers of ``H * count`` plans
        :return: windows with the new plans, which are also written to where the windows come from
        """
        assert batch.plans is not None and batch.buffer_index is not None
        if self.policy.acceleration.compiles and self._compiled_replan is None:
            self._compiled_replan = self.policy.compile_plan(self._reanalyzer)
        observations = batch.observations
        states: Any = (
            {key: part[:-1, :count].flatten(0, 1) for key, part in observations.items()}
            if isinstance(observations, dict)
            else observations[:-1, :count].flatten(0, 1)
        )
        shift = self.policy.draw_shift(self.horizon * count)
        cold = batch.actions.new_zeros(self.horizon * count, self._reanalyzer.horizon, batch.actions.shape[-1])
        self.policy.set_training_mode(False)
        plan = (self._compiled_replan or self.policy.plan)(states, cold, shift, noise, self._reanalyzer)
        self.policy.set_training_mode(True)
        new = self.plan_to_store(plan)
        stored = batch.mask[:, :count].flatten().cpu().numpy() > 0
        rows, envs = batch.buffer_index[:, :, :count].reshape(2, -1)
        self.windows.store_plans(new.cpu().numpy()[:, stored], rows[stored], envs[stored])
        plans, planned = batch.plans.clone(), batch.planned
        plans[:, :, :count] = new.view(2, self.horizon, count, -1)
        if planned is not None:
            planned = planned.clone()
            planned[:, :count] = True
        return batch._replace(plans=plans, planned=planned)

    def learn(
        self: SelfBMPC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "BMPC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        offline_data: RecordedData | None = None,
        offline_fraction: float | Schedule = 0.5,
        random_seeding: bool | str = "auto",
    ) -> SelfBMPC:
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
