"""
Model-predictive path integral control with a policy prior (TD-MPC2, section 3.2), batched over environments.

A plan is a pure function of its inputs: all random numbers are drawn beforehand into a :class:`PlanNoise`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch as th
from torch import nn

from sb3_mpc.common.execution.acceleration import compile_function, full_precision, most_at_once
from sb3_mpc.common.networks.layers import draw_members
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.plan import Plan, PlanNoise

MAX_NUMBERS = 2**30  # random numbers of a plan for one environment, far more than any plan has
LARGE_ACTION_DIM, EXTRA_ITERATIONS = 20, 2  # more iterations for large action spaces (official code)


class MPPIPlanner(nn.Module):
    """
    MPPI (TD-MPC2, section 3.2): iterated sampling from a Gaussian over action sequences, which is refitted to the
    elites of each iteration, weighted by ``exp(temperature * return)``.

    :param world_model: model that evaluates the sequences; owned by the policy
    :param horizon: length H of the sequences
    :param gamma: discount factor
    :param iterations: number of refits; two more are made for 20 or more action dimensions
    :param num_samples: number N of sequences per iteration
    :param num_elites: number K of best sequences that the Gaussian is refitted to
    :param num_pi_trajs: number P of sequences proposed by the policy prior
    :param min_std: lower bound of the standard deviation
    :param max_std: initial standard deviation and its upper bound
    :param temperature: factor of the return in the weights of the elites, an inverse temperature
    :raises ValueError: if an argument is out of range
    """

    needs_terminal_action: ClassVar[bool] = True  # whether the terminal value is one of actions (Q)
    iterated: ClassVar[tuple[str, ...]] = ("evaluate",)  # expensive methods, called in each iteration
    # Which dimension of the random numbers is that of the environments
    environment_axes: ClassVar[dict[str, int]] = dict(
        proposals=1, samples=2, terminal=1, selection=0, exploration=0, start=1
    )

    def __init__(
        self,
        world_model: WorldModel,
        horizon: int = 3,
        gamma: float = 0.99,
        iterations: int = 6,
        num_samples: int = 512,
        num_elites: int = 64,
        num_pi_trajs: int = 24,
        min_std: float = 0.05,
        max_std: float = 2.0,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        if horizon < 1 or iterations < 1 or not min_std <= max_std:
            wrong = f"{horizon=}, {iterations=}, {min_std=}, {max_std=}"
            raise ValueError(f"The planner needs horizon >= 1, iterations >= 1 and min_std <= max_std, got {wrong}.")
        if not 1 <= num_elites <= num_samples or not 0 <= num_pi_trajs <= num_samples:
            wrong = f"{num_elites=}, {num_pi_trajs=}, {num_samples=}"
            raise ValueError(
                f"The planner needs 1 <= num_elites <= num_samples and 0 <= num_pi_trajs <= num_samples, got {wrong}."
            )
        self.world_model: WorldModel
        object.__setattr__(self, "world_model", world_model)  # not as a submodule: the policy registers it
        self.horizon, self.gamma = horizon, gamma
        self.action_dim = world_model.action_dim
        self.iterations = iterations + (EXTRA_ITERATIONS if self.action_dim >= LARGE_ACTION_DIM else 0)
        numbers = self.iterations * (horizon + 1) * num_samples * self.action_dim
        if numbers > MAX_NUMBERS:
            raise ValueError(
                f"A plan needs {4e-9 * numbers:.0f} GB of random numbers with {horizon=}, {iterations=} and "
                f"{num_samples=}: reduce them."
            )
        self.num_samples, self.num_elites, self.num_pi_trajs = num_samples, num_elites, num_pi_trajs
        self.min_std, self.max_std, self.temperature = min_std, max_std, temperature
        self._compiled: dict[str, Callable[..., th.Tensor]] = {}

    def compile_iteration(self) -> None:
        """Compile the methods named in ``iterated``, which do nearly all of the work."""
        self._compiled = self._compiled or {name: compile_function(getattr(self, name)) for name in self.iterated}

    def maybe_compiled(self, name: str) -> Callable[..., th.Tensor]:
        """:return: the method of this name, compiled if :meth:`compile_iteration` was called"""
        return self._compiled.get(name) or getattr(self, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}  # compiled functions are bound to this object

    def draw(self, n_envs: int, generator: th.Generator, explore: bool) -> PlanNoise:
        """
        :param n_envs: number E of environments
        :param generator: source of randomness; the noise is on its device
        :param explore: draw an elite and exploration noise as in training; otherwise the elites' mean is the action
        :return: random numbers of one plan
        """
        device = generator.device
        normal = partial(th.randn, generator=generator, device=device)
        horizon, proposals, action_dim = self.horizon, self.num_pi_trajs, self.action_dim
        selection = (
            th.empty(n_envs, self.num_elites, device=device).exponential_(generator=generator) if explore else None
        )
        rows = n_envs if self.needs_terminal_action else 0
        return PlanNoise(
            proposals=normal(horizon, n_envs, proposals, action_dim),
            samples=normal(self.iterations, horizon, n_envs, self.num_samples - proposals, action_dim),
            terminal=normal(self.iterations, rows, self.num_samples, action_dim),
            members=draw_members(self.iterations, self.world_model.num_q, generator),
            selection=selection,
            exploration=normal(n_envs, action_dim) if explore else None,
        )

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """:return: the models that plans are made by"""
        return (self.world_model,)

    @property
    def rows_per_environment(self) -> int:
        """:return: rows of a plan for each environment; those of all environments follow each other, E at a time"""
        return 1

    @property
    def width(self) -> int:
        """:return: size of the largest output of a layer for one sequence"""
        return max([self.world_model.latent_dim, *self.world_model.hidden])

    def environments_at_once(self, device: th.device) -> int:
        """
        :param device: device of the model
        :return: number of environments whose plans fit into its memory together
        """
        return most_at_once(device, self.rows_per_environment * self.num_samples * self.width)

    def noise_of(self, noise: PlanNoise, n_envs: int, chosen: th.Tensor) -> PlanNoise:
        """
        :param noise: random numbers of a plan
        :param n_envs: number E of its environments
        :param chosen: indices of some of them ``[e]``
        :return: random numbers of these, and those that all environments share
        """
        rows = n_envs * self.rows_per_environment
        index = (th.arange(0, rows, n_envs, device=chosen.device).unsqueeze(1) + chosen).flatten()
        parts = ((name, getattr(noise, name), axis) for name, axis in self.environment_axes.items())
        own = {
            name: part.index_select(axis, index)
            for name, part, axis in parts
            if part is not None and part.ndim > axis and part.shape[axis] == rows
        }
        return noise._replace(**own)

    def action_parts(self) -> dict[tuple[str, int], list[int]]:
        """
        :return: where the number of actions determines the size of a parameter of the planner: by its name and axis,
            the sizes of the parts that it consists of there; MPPI has no parameters
        """
        return {}

    def act(self, z: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param noise: standard normal draws ``[..., A]``
        :return: actions of the prior in its proposals ``[..., A]``
        """
        return self.world_model.act(z, noise)

    def propose(self, z: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Propose sequences by rollouts of the policy prior in the model.

        :param z: latent states ``[E, D]``
        :param noise: ``[H, E, P, A]``
        :return: action sequences ``[H, E, P, A]``
        """
        z = z.unsqueeze(1).expand(-1, self.num_pi_trajs, -1)
        actions = []
        for t in range(self.horizon):
            actions.append(self.act(z, noise[t]))
            if t < self.horizon - 1:
                z = self.world_model.next(z, actions[-1])
        return th.stack(actions)

    def sample(self, mean: th.Tensor, std: th.Tensor, proposals: th.Tensor | None, noise: th.Tensor) -> th.Tensor:
        """
        :param mean: ``[H, E, A]``
        :param std: ``[H, E, A]``
        :param proposals: sequences of the prior ``[H, E, P, A]``, if any
        :param noise: ``[H, E, N - P, A]``
        :return: candidate sequences ``[H, E, N, A]`` in [-1, 1], the proposals first
        """
        samples = (mean.unsqueeze(2) + std.unsqueeze(2) * noise).clamp(-1, 1)
        return samples if proposals is None else th.cat([proposals, samples], dim=2)

    def evaluate(self, z: th.Tensor, actions: th.Tensor, noise: th.Tensor, members: th.Tensor) -> th.Tensor:
        """
        Estimate returns: discounted rewards of the model over the horizon, plus the discounted value of the last state.
        NaN stays NaN, so that the plan shows it.

        :param z: latent states ``[E, D]``
        :param actions: candidate sequences ``[H, E, N, A]``
        :param noise: draws of the terminal actions ``[E, N, A]``
        :param members: pair of value networks ``[2]``
        :return: estimated returns ``[E, N]``
        """
        latents, rewards, factors = self.rollout(z, actions)
        values = self.terminal_value(latents[-1], noise, members)
        return (th.cat([rewards, values.unsqueeze(0)]) * factors).sum(0).squeeze(-1)

    def rollout(self, z: th.Tensor, actions: th.Tensor) -> tuple[list[th.Tensor], th.Tensor, th.Tensor]:
        """
        :param z: latent states ``[E, D]``
        :param actions: candidate sequences ``[H, E, N, A]``
        :return: predicted latent states of the steps 0 to H ``[E, N, D]`` each, rewards ``[H, E, N, 1]``, and the
            factors of rewards and values in a return ``[H + 1, ...]``: discounts, zero after a predicted termination
        """
        model = self.world_model
        z = z.unsqueeze(1).expand(-1, actions.shape[2], -1)
        latents = [z]
        for action in actions:
            latents.append(model.next(latents[-1], action))
        rewards = self.rewards(z.unsqueeze(0), actions[:1])  # apart, because the state is the same for all sequences
        if self.horizon > 1:
            rewards = th.cat([rewards, self.rewards(th.stack(latents[1:-1]), actions[1:])])
        steps = th.arange(self.horizon + 1, device=z.device, dtype=z.dtype).view(-1, 1, 1, 1)
        factors = model.discount(z, self.gamma) ** steps
        if model.termination_head is not None:
            ended = th.as_tensor(1 - model.continues(th.stack(latents[1:]))).cumsum(0).clamp(max=1)
            factors = factors * th.cat([th.ones_like(ended[:1]), 1 - ended])
        return latents, rewards, factors

    def evaluate_in_parts(self, z: th.Tensor, actions: th.Tensor, noise: th.Tensor, members: th.Tensor) -> th.Tensor:
        """See :meth:`evaluate`; environments are evaluated in parts, so that no output of a layer is too large."""
        evaluate, (_, n_envs, samples, _) = self.maybe_compiled("evaluate"), actions.shape
        parts = math.ceil(n_envs / most_at_once(z.device, samples * self.width))
        if parts == 1 or th.compiler.is_compiling():  # a compiled update would unroll the parts
            return evaluate(z, actions, noise, members)
        if self._compiled:  # equal parts, so that one shape is compiled
            parts = next(count for count in range(parts, n_envs + 1) if n_envs % count == 0)
        noise = noise.expand(n_envs if len(noise) else 0, -1, -1)
        pieces = zip(*(x.tensor_split(parts, d) for x, d in ((z, 0), (actions, 1), (noise, 0))), strict=True)
        return th.cat([evaluate(*piece, members) for piece in pieces])

    def rewards(self, z: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[H, E, N, D]``
        :param actions: ``[H, E, N, A]``
        :return: rewards before discounting ``[H, E, N, 1]``
        """
        return self.world_model.two_hot.decode(self.world_model.reward(z, actions))

    def terminal_value(self, z: th.Tensor, noise: th.Tensor, members: th.Tensor) -> th.Tensor:
        """
        :param z: latent states at the end of the horizon ``[E, N, D]``
        :param noise: draws of the terminal actions ``[E, N, A]``
        :param members: pair of value networks ``[2]``
        :return: values ``[E, N, 1]``
        """
        model = self.world_model
        return self.reduce(model.two_hot.decode(model.value(z, model.act(z, noise), self.networks(members))))

    def networks(self, members: th.Tensor) -> th.Tensor | None:
        """
        :param members: pair of value networks ``[2]``
        :return: indices of the networks that give the terminal value, all of them if None
        """
        return members

    def reduce(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: values of several networks ``[M, E, N, 1]``
        :return: terminal values ``[E, N, 1]``, here their mean
        """
        return values.mean(0)

    def refit(self, actions: th.Tensor, values: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        :param actions: candidate sequences ``[H, E, N, A]``
        :param values: estimated returns ``[E, N]``
        :return: mean and standard deviation ``[H, E, A]``, weights ``[E, K]`` and indices ``[E, K]`` of the elites
        """
        elite_values, elites = values.topk(self.num_elites, dim=1)
        weights = th.exp(self.temperature * (elite_values - elite_values[:, :1]))
        weights = weights / weights.sum(1, keepdim=True)
        elite_actions = self.gather(actions, elites)
        normalized = (weights / (weights.sum(1, keepdim=True) + 1e-9)).unsqueeze(-1)  # [E, K, 1]
        mean = (normalized * elite_actions).sum(2)
        std = (normalized * (elite_actions - mean.unsqueeze(2)).square()).sum(2).sqrt()
        return mean, std.clamp(self.min_std, self.max_std), weights, elites

    @staticmethod
    def gather(actions: th.Tensor, index: th.Tensor) -> th.Tensor:
        """
        :param actions: ``[H, E, N, A]``
        :param index: ``[E, K]``
        :return: the sequences of each environment at its indices ``[H, E, K, A]``
        """
        return actions.take_along_dim(index[None, :, :, None], dim=2)

    def start(self, prev_mean: th.Tensor, proposals: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
        """
        :param prev_mean: mean of the previous plan ``[E, H, A]``
        :param proposals: sequences of the prior ``[H, E, P, A]``, if any
        :return: mean and standard deviation of the first iteration ``[H, E, A]``
        """
        mean = th.cat([prev_mean[:, 1:], th.zeros_like(prev_mean[:, :1])], dim=1).transpose(0, 1)
        return mean, th.full_like(mean, self.max_std)

    def keep(self, actions: th.Tensor, values: th.Tensor, elites: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
        """
        :param actions: sequences of an iteration ``[H, E, N, A]``
        :param values: their estimated returns ``[E, N]``
        :param elites: indices of the best ``[E, K]``, the best first
        :return: sequences and returns that the next iteration has besides its own; none here
        """
        return None

    @th.no_grad()
    def plan(self, z: th.Tensor, prev_mean: th.Tensor, noise: PlanNoise) -> Plan:
        """
        :param z: latent states ``[E, D]``
        :param prev_mean: mean of the previous plan ``[E, H, A]``; zeros at the start of an episode
        :param noise: random numbers
        :return: action and distribution for each environment
        """
        return self.search(z, prev_mean, noise, self.propose(z, noise.proposals) if self.num_pi_trajs > 0 else None)

    def search(self, z: th.Tensor, prev_mean: th.Tensor, noise: PlanNoise, proposals: th.Tensor | None) -> Plan:
        """
        :param z: latent states ``[E, D]``
        :param prev_mean: mean of the previous plan ``[E, H, A]``
        :param noise: random numbers
        :param proposals: sequences of the prior ``[H, E, P, A]``, if any
        :return: action and distribution for each environment
        """
        mask = self.world_model.mask_actions
        mean, std = (mask(z, part) for part in self.start(prev_mean, proposals))
        kept: tuple[th.Tensor, th.Tensor] | None = None
        for j in range(self.iterations):
            actions = self.sample(mean, std, proposals, noise.samples[j])
            gives_action = noise.selection is None and j == self.iterations - 1  # the last mean is the action
            with full_precision(z, gives_action):
                values = self.evaluate_in_parts(z, actions, noise.terminal[j], noise.members[j])
            if kept is not None:
                actions, values = th.cat([actions, kept[0]], dim=2), th.cat([values, kept[1]], dim=1)
            mean, std, weights, elites = self.refit(actions, values)
            std = mask(z, std)
            kept = self.keep(actions, values, elites)
        if noise.selection is None:
            action, selected = mean[0], elites[:, :1]
        else:
            # Gumbel-max trick: argmax(log w - log Exp(1)) is a draw from w
            selected = elites.gather(1, (weights.log() - noise.selection.log()).argmax(1, keepdim=True))
            action = self.gather(actions, selected)[0, :, 0]
        executed = action if noise.exploration is None else action + std[0] * noise.exploration
        return Plan(
            action=executed.clamp(-1, 1),
            mean=mean.transpose(0, 1),
            std=std.transpose(0, 1),
            elite_action=action,
            elite_value=values.gather(1, selected).squeeze(1),
        )
