"""How far the planner and its policy prior are apart: in returns, in actions and in values."""

from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mpc.common.callbacks.measurement import EpisodeMeasurement, Measurement
from sb3_mpc.common.networks.losses import time_slice
from sb3_mpc.common.planning.plan import Plan

SEED = 20_240_131  # of episodes and draws, the same in every measurement


class PlannerGapCallback(EpisodeMeasurement):
    """
    Compare the returns of planning and of the policy prior alone (BMPC, figures 2 and 6). Both act deterministically,
    in environments with the same seeds. The results are ``planner``, ``policy`` and ``gap``, their difference. The
    arguments are those of :class:`EpisodeMeasurement`.
    """

    name = "planner_gap"

    def panels(self) -> dict[str, list[str]]:
        """:return: both returns together"""
        return {"return": ["planner", "policy"], "planner minus policy": ["gap"]}

    @th.no_grad()
    def measure(self) -> dict[str, float]:
        """:return: mean return by planning, by the policy prior, and their difference"""
        found = []
        for agent in (self.model, self.model.actor):
            self.eval_env.seed(SEED)
            returns, _ = evaluate_policy(
                agent,
                self.eval_env,
                self.n_eval_episodes,
                return_episode_rewards=True,
                warn=False,
            )
            found.append(float(np.mean(returns)))
        return dict(planner=found[0], policy=found[1], gap=found[0] - found[1])


class SearchMismatchCallback(Measurement):
    """
    Compare planner and policy prior in states of the replay buffer. The planner plans deterministically and without
    warm start; of the prior, the mode is taken. The results are

    - ``improvement``: how much higher the planner values the plan than the prior's own sequence, on average. This is
      the improvement on the policy that BMPC imitates, as the model estimates it
    - ``action_drift``: root mean square difference between the actions of planner and prior, in [0, 2]
    - ``data_drift``: the same between the planner's and those in the replay buffer
    - ``td_error``: mean absolute TD error of the values where the next action is the prior's, which they are trained on
    - ``cross_td_error``: the same where the next action is the planner's

    MBDPO's paper compares methods by action drift and cross-TD error; its definitions were not at hand, and these are
    ours. For state values, the TD error is that of a step of the model by the action of either. Of Fac-TDMPC, the
    expert is measured.

    :param eval_freq: see :class:`Measurement`
    :param n_states: number of states, drawn with replacement, the same ones in a given buffer
    :param folder: see :class:`Measurement`
    :param verbose: see :class:`Measurement`
    """

    name = "search_mismatch"

    def __init__(
        self, eval_freq: int = 10_000, n_states: int = 64, folder: str | Path | None = None, verbose: int = 0
    ) -> None:
        super().__init__(eval_freq, folder, verbose)
        if n_states < 1:
            raise ValueError(f"{n_states=} must be at least 1.")
        self.n_states = n_states

    def panels(self) -> dict[str, list[str]]:
        """:return: one panel for each kind of result"""
        errors, drifts = ["td_error", "cross_td_error"], ["action_drift", "data_drift"]
        return {"improvement of the value": ["improvement"], "difference of actions": drifts, "TD error": errors}

    @th.no_grad()
    def measure(self) -> dict[str, float]:
        """:return: the five results, NaN while the replay buffer is empty"""
        model, buffer = self.model.policy.world_model, self.model.replay_buffer
        names = ("improvement", "action_drift", "data_drift", "td_error", "cross_td_error")
        if buffer.size() == 0:
            return dict.fromkeys(names, float("nan"))
        kept = buffer._rng
        try:
            buffer.seed(SEED)
            batch = buffer.sample(self.n_states, env=self.model._vec_normalize_env)
        finally:
            buffer._rng = kept
        z, following = (model.encode(time_slice(batch.observations, t)) for t in (0, 1))
        plan, sequence = self.plan(z), self.prior_sequence(z)
        drift = (plan.action - sequence[0]).square().mean().sqrt()
        data_drift = (plan.action - batch.actions[0]).square().mean().sqrt()
        planned, prior = self.values(z, th.stack([plan.mean.transpose(0, 1), sequence], dim=2)).unbind(1)
        if model.values_actions:
            value = self.value(z, batch.actions[0])
            actions = (model.act(following, None), self.plan(following).action)
            discount = model.discount(z, self.model.gamma) * (1 - batch.terminated[0])
            errors = [batch.rewards[0] + discount * self.value(following, a) - value for a in actions]
        else:
            errors = [self.model_error(z, action) for action in (sequence[0], plan.action)]
        found = ((planned - prior).mean(), drift, data_drift, *(error.abs().mean() for error in errors))
        return {name: value.item() for name, value in zip(names, found, strict=True)}

    def plan(self, z: th.Tensor) -> Plan:
        """
        :param z: latent states ``[E, D]``
        :return: deterministic plans without warm start
        """
        planner = self.model.policy.planner
        noise = planner.draw(1, th.Generator().manual_seed(SEED), explore=False).to(z.device)
        return planner.plan(z, z.new_zeros(len(z), planner.horizon, planner.action_dim), noise)

    def prior_sequence(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[E, D]``
        :return: actions of the prior's mode along the model ``[H, E, A]``
        """
        model, actions = self.model.policy.world_model, []
        for _ in range(self.model.policy.planner.horizon):
            actions.append(model.act(z, None))
            z = model.next(z, actions[-1])
        return th.stack(actions)

    def values(self, z: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[E, D]``
        :param actions: sequences ``[H, E, N, A]``
        :return: returns that the planner expects, with the prior's mode as terminal action ``[E, N]``
        """
        planner, model = self.model.policy.planner, self.model.policy.world_model
        noise, members = th.zeros_like(actions[0]), th.arange(model.num_q, device=z.device)
        return planner.evaluate(z, actions, noise, members)

    def value(self, z: th.Tensor, action: th.Tensor | None = None) -> th.Tensor:
        """
        :param z: latent states ``[E, D]``
        :param action: ``[E, A]``; not needed for state values
        :return: mean value of all networks ``[E, 1]``
        """
        model = self.model.policy.world_model
        return model.two_hot.decode(model.value(z, action)).mean(0)

    def model_error(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[E, D]``
        :param action: ``[E, A]``
        :return: TD errors of state values in a step of the model ``[E, 1]``
        """
        model = self.model.policy.world_model
        following = model.next(z, action)
        discount = model.discount(z, self.model.gamma) * model.continues(following)
        reward = model.two_hot.decode(model.reward(z, action))
        return reward + discount * self.value(following) - self.value(z)
