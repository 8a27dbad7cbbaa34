"""Acting without planning."""

from functools import partial

import torch as th

from sb3_mpc.common.networks.layers import draw_members
from sb3_mpc.common.planning.plan import Plan, PlanNoise
from sb3_mpc.common.planning.planner import MPPIPlanner


class PriorPlanner(MPPIPlanner):
    """
    The policy prior in place of a planner, with ``policy_kwargs=dict(planner_class=PriorPlanner)``: training collects,
    and ``predict`` acts, without planning (TD-MPC2's ablation of its planner).

    The arguments are those of the base class; of them only ``horizon`` is used, for the shape of the state of
    ``predict``, on which no action depends. A stored plan is the prior's Gaussian (official code of TD-M(PC)²).
    """

    iterated = ()

    def draw(self, n_envs: int, generator: th.Generator, explore: bool) -> PlanNoise:
        """
        :param n_envs: number E of environments
        :param generator: source of randomness; the noise is on its device
        :param explore: draw an action of the prior; otherwise its mode is the action
        :return: random numbers of one action in each environment
        """
        device = generator.device
        draw = partial(th.randn, n_envs, self.action_dim, generator=generator, device=device)
        none = th.empty(0, device=device)
        members = draw_members(1, self.world_model.num_q, generator)
        return PlanNoise(none, none, none, members, exploration=draw() if explore else None)

    @th.no_grad()
    def plan(self, z: th.Tensor, prev_mean: th.Tensor, noise: PlanNoise) -> Plan:
        """
        :param z: latent states ``[E, D]``
        :param prev_mean: not used ``[E, H, A]``
        :param noise: random numbers
        :return: action, its value, and the prior's Gaussian, the same in all steps, for each environment
        """
        model = self.world_model
        mode, action = model.act(z, None), model.act(z, noise.exploration)
        std = model.mask_actions(z, model.prior(z)[1].exp())
        values = model.two_hot.decode(model.value(z, action, noise.members[0])).mean(0)
        return Plan(
            action=action,
            mean=mode.unsqueeze(1).expand_as(prev_mean),
            std=std.unsqueeze(1).expand_as(prev_mean),
            elite_action=mode,
            elite_value=values.squeeze(-1),
        )
