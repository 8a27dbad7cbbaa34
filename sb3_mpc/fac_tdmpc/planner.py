"""Decentralised planning: action groups plan independently, in one batch."""

from typing import Any

import torch as th
from torch import nn

from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.improved import ImprovedPlanner
from sb3_mpc.common.planning.plan import Plan, PlanNoise
from sb3_mpc.fac_tdmpc.world_model import FactoredWorldModel


class FactoredPlanner(ImprovedPlanner):
    """
    MPPI in which the groups are rows of the batch, so that each has its own elites, mean and standard deviation
    (Fac-TDMPC, section 4.3). The action in the last predicted state is planned, too: plans have H + 1 actions.

    :param world_model: factored model that evaluates the sequences; owned by the policy
    :param expert: the expert's model, in which its policy proposes sequences (the first author's code); owned by the
        policy, too
    :param horizon: number H of predicted steps
    :param kwargs: arguments of :class:`ImprovedPlanner`, except ``pessimistic`` and ``average_depths``
    :raises ValueError: if one of these two is given, or an argument is out of range
    """

    world_model: FactoredWorldModel  # type: ignore[assignment]
    expert: WorldModel

    def __init__(self, world_model: FactoredWorldModel, expert: WorldModel, horizon: int = 3, **kwargs: Any) -> None:
        for name in ("pessimistic", "average_depths"):
            if kwargs.get(name):
                raise ValueError(f"The student estimates returns in one way only: leave {name} out of its planner.")
        super().__init__(world_model, horizon=horizon, **kwargs)  # type: ignore[arg-type]
        object.__setattr__(self, "expert", expert)  # not as a submodule
        self.horizon += 1

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """:return: the factored model, and the expert's"""
        return (self.world_model, self.expert)

    @property
    def rows_per_environment(self) -> int:
        """:return: number of groups"""
        return self.world_model.groups.num_groups

    @property
    def width(self) -> int:
        """:return: size of the largest output of a group's layer for one sequence, the expert's for its part of them"""
        groups, expert = self.world_model.groups.num_groups, self.expert
        proposed = max([expert.latent_dim, *expert.hidden]) * self.num_pi_trajs // (groups * self.num_samples)
        return max([self.world_model.latent_dim // groups, *self.world_model.hidden, proposed])

    def draw(self, n_envs: int, generator: th.Generator, explore: bool) -> PlanNoise:
        """
        :param n_envs: number E of environments
        :param generator: source of randomness; the noise is on its device
        :param explore: draw elites and exploration noise as in training; otherwise the elites' mean is the action
        :return: random numbers of one plan, with G * E rows in place of E
        """
        groups, device = self.world_model.groups, generator.device
        rows, width = groups.num_groups * n_envs, groups.width

        def normal(*shape: int) -> th.Tensor:
            return th.randn(*shape, generator=generator, device=device)

        elites = th.empty(rows, self.num_elites, device=device)
        return PlanNoise(
            proposals=normal(self.horizon, rows, self.num_pi_trajs, width),
            samples=normal(self.iterations, self.horizon, rows, self.num_samples - self.num_pi_trajs, width),
            terminal=th.empty(self.iterations, 0, device=device),
            members=th.empty(self.iterations, 0, device=device),
            selection=elites.exponential_(generator=generator) if explore else None,
            exploration=normal(rows, width) if explore else None,
        )

    def propose(self, z: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Propose sequences by rollouts of the expert's policy in the expert's model.

        :param z: latent states of the expert ``[E, D]``
        :param noise: ``[H + 1, G * E, P, a]``
        :return: action sequences of the groups ``[H + 1, G * E, P, a]``
        """
        groups = self.world_model.groups
        z = z.unsqueeze(1).expand(-1, self.num_pi_trajs, -1)
        actions = [self.expert.act(z, groups.join(noise[0]))]
        for draws in noise[1:]:
            z = self.expert.next(z, actions[-1])
            actions.append(self.expert.act(z, groups.join(draws)))
        return groups.split(th.stack(actions), 1)

    def evaluate(self, z: th.Tensor, actions: th.Tensor, noise: th.Tensor, members: th.Tensor) -> th.Tensor:
        """
        :param z: blocks of latent states ``[G * E, m]``
        :param actions: candidate sequences of the groups ``[H + 1, G * E, N, a]``
        :param noise: not used
        :param members: not used
        :return: contribution of each group to the estimated returns ``[G * E, N]``
        """
        model = self.world_model
        z = z.unsqueeze(1).expand(-1, actions.shape[2], -1)
        returns = th.zeros_like(z[..., :1])
        for t, action in enumerate(actions[:-1]):
            returns = returns + self.gamma**t * model.reward(z, action)
            z = model.next(z, action)
        value = model.value(z, actions[-1]).mean(0)
        return (returns + self.gamma ** (len(actions) - 1) * value).squeeze(-1)

    def evaluate_in_parts(self, z: th.Tensor, actions: th.Tensor, noise: th.Tensor, members: th.Tensor) -> th.Tensor:
        """See :meth:`evaluate`; not in parts here, because it needs the rows of all groups at once."""
        return self.maybe_compiled("evaluate")(z, actions, noise, members)

    @th.no_grad()
    def plan(self, z: th.Tensor, prev_mean: th.Tensor, noise: PlanNoise) -> Plan:
        """
        :param z: latent states of the expert ``[E, D]``
        :param prev_mean: mean of the previous plan ``[E, H + 1, A]``; zeros at the start of an episode
        :param noise: random numbers, for each environment or shared by all
        :return: action and distribution for each environment
        """
        groups, n_envs = self.world_model.groups, len(z)
        if noise.samples.shape[2] != groups.num_groups * n_envs:  # the environments share their random numbers
            noise = noise._replace(
                proposals=noise.proposals.repeat_interleave(n_envs, dim=1),
                samples=noise.samples.repeat_interleave(n_envs, dim=2),
            )
        proposals = self.propose(z, noise.proposals) if self.num_pi_trajs > 0 else None
        rows = self.search(self.world_model.split(z), groups.split(prev_mean, 0), noise, proposals)
        return Plan(
            action=groups.join(rows.action),
            mean=groups.join(rows.mean),
            std=groups.join(rows.std),
            elite_action=groups.join(rows.elite_action),
            elite_value=groups.add(rows.elite_value),
        )
