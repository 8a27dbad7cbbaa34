"""MPPI with improvements that later papers propose."""

from typing import Any

import torch as th

from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.planner import MPPIPlanner


class ImprovedPlanner(MPPIPlanner):
    """
    MPPI with improvements of later papers, each of them off by default; without them it plans as :class:`MPPIPlanner`
    does. ``policy_kwargs=dict(planner_class=ImprovedPlanner, planner_kwargs=dict(kept_elites=0.5))`` turns one on.

    :param world_model: model that evaluates the sequences; owned by the policy
    :param pessimistic: the minimum of all value networks is the terminal value, instead of the mean of two (MRS.Q,
        https://arxiv.org/abs/2601.21306)
    :param average_depths: a return is the mean of the estimates that end with a value after 1 to H steps, instead of
        the one after H steps (EfficientTDMPC, https://arxiv.org/abs/2605.16692); it needs H times as many values
    :param noise_correlation: correlation of the noise of successive actions in a sampled sequence, from 0 to below 1.
        (The coloured noise of iCEM, https://arxiv.org/abs/2008.06389, in a form that plans of three actions can have.)
    :param kept_elites: part of the elites, the best of them, that the next iteration has besides its own sequences,
        without evaluating them again (iCEM)
    :param policy_start: part, from 0 to 1, of the policy's own distribution in that of the first iteration: its mean is
        moved from the previous plan's to that of the policy's proposals, and its standard deviation from ``max_std`` to
        theirs (Newt starts from the policy, too)
    :param kwargs: arguments of :class:`MPPIPlanner`
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        world_model: WorldModel,
        *,
        pessimistic: bool = False,
        average_depths: bool = False,
        noise_correlation: float = 0.0,
        kept_elites: float = 0.0,
        policy_start: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(world_model, **kwargs)
        if not 0 <= noise_correlation < 1:
            raise ValueError(f"{noise_correlation=} must be at least 0 and below 1.")
        for name, part in (("kept_elites", kept_elites), ("policy_start", policy_start)):
            if not 0 <= part <= 1:
                raise ValueError(f"{name}={part} must be between 0 and 1.")
        if policy_start > 0 and self.num_pi_trajs < 2:
            raise ValueError(f"{policy_start=} needs the spread of the policy's proposals: set num_pi_trajs >= 2.")
        self.pessimistic, self.average_depths = pessimistic, average_depths
        self.noise_correlation, self.policy_start = noise_correlation, policy_start
        self.num_kept = round(kept_elites * self.num_elites)

    def networks(self, members: th.Tensor) -> th.Tensor | None:
        """
        :param members: pair of value networks ``[2]``
        :return: these, or None for all networks
        """
        return None if self.pessimistic else super().networks(members)

    def reduce(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: values of several networks ``[M, ..., 1]``
        :return: their mean or minimum ``[..., 1]``
        """
        return values.amin(0) if self.pessimistic else super().reduce(values)

    def evaluate(self, z: th.Tensor, actions: th.Tensor, noise: th.Tensor, members: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[E, D]``
        :param actions: candidate sequences ``[H, E, N, A]``
        :param noise: draws of the actions in the valued states ``[E, N, A]``
        :param members: pair of value networks ``[2]``
        :return: estimated returns ``[E, N]``
        """
        if not self.average_depths:
            return super().evaluate(z, actions, noise, members)
        latents, rewards, factors = self.rollout(z, actions)
        values = self.terminal_value(th.stack(latents[1:]), noise, members)  # [H, E, N, 1]
        # Of the H estimates, those after t + 1 to H steps have the reward of step t
        shares = 1 - th.arange(self.horizon, device=z.device, dtype=z.dtype).view(-1, 1, 1, 1) / self.horizon
        returns = shares * factors[:-1] * rewards + factors[1:] * values / self.horizon
        return returns.sum(0).squeeze(-1)

    def sample(self, mean: th.Tensor, std: th.Tensor, proposals: th.Tensor | None, noise: th.Tensor) -> th.Tensor:
        """See :meth:`MPPIPlanner.sample`; the noise of an action is correlated with that of the one before."""
        if self.noise_correlation > 0:
            own = (1 - self.noise_correlation**2) ** 0.5
            steps = [noise[0]]
            for part in noise[1:]:
                steps.append(self.noise_correlation * steps[-1] + own * part)
            noise = th.stack(steps)
        return super().sample(mean, std, proposals, noise)

    def start(self, prev_mean: th.Tensor, proposals: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
        """
        :param prev_mean: mean of the previous plan ``[E, H, A]``
        :param proposals: sequences of the prior ``[H, E, P, A]``, if any
        :return: mean and standard deviation of the first iteration ``[H, E, A]``
        """
        mean, std = super().start(prev_mean, proposals)
        if proposals is None or self.policy_start == 0:
            return mean, std
        spread = proposals.std(2).clamp(self.min_std, self.max_std)
        return mean.lerp(proposals.mean(2), self.policy_start), std.lerp(spread, self.policy_start)

    def keep(self, actions: th.Tensor, values: th.Tensor, elites: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
        """
        :param actions: sequences of an iteration ``[H, E, N, A]``
        :param values: their estimated returns ``[E, N]``
        :param elites: indices of the best ``[E, K]``, the best first
        :return: the best sequences and their returns, if any are kept
        """
        if self.num_kept == 0:
            return None
        best = elites[:, : self.num_kept]
        return self.gather(actions, best), values.gather(1, best)
