"""The diffusion planner of MBDPO, with its energy and its optional score network."""

import math
from functools import partial
from typing import Any

import torch as th
from torch import nn

from sb3_mpc.common.execution.acceleration import full_precision
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.plan import Plan, PlanNoise
from sb3_mpc.common.planning.planner import MPPIPlanner

MIN_SPREAD = 1e-4  # returns with a smaller standard deviation are not rescaled
MAX_PERIOD = 10_000.0  # of the embedding of diffusion steps


class DiffusionPlanner(MPPIPlanner):
    """
    Reverse diffusion over action sequences; the score is estimated by sampling in the world model.

    With ``alpha_tau = 1 - beta_tau`` and ``abar_tau`` their product up to step tau, one step is
    ``x_{tau-1} = (x_tau + (1 - abar_tau) score) / sqrt(alpha_tau)`` with the score
    ``(sqrt(abar_tau) a - x_tau) / (1 - abar_tau)``, where a is a softmax-weighted mean of the best of many sequences
    around ``x_tau / sqrt(abar_tau)``. The noise of a plan is that of the base, with proposals ``[J, H, E, P, A]``.

    :param world_model: model that evaluates the sequences; owned by the policy
    :param iterations: number J of denoising steps
    :param beta_start: first beta of the schedule of ``J + 1`` values
    :param beta_end: its last beta
    :param exploration_std: standard deviation of the exploration noise on executed actions
    :param contrastive_eta: weight of the energy in the returns
    :param contrastive_clip: bound on the absolute normalised energy
    :param contrastive_momentum: momentum of the running statistics that normalise the energy
    :param use_score_network: whether there is a score network
    :param score_only_inference: whether to plan with the score network alone, without sampling sequences; "auto" if
        there is one
    :param init_noise: standard deviation of the noise that is added to the sequences at step J
    :param time_embed_dim: size of the embedding of the diffusion step, even
    :param kwargs: arguments of :class:`MPPIPlanner`
    :raises ValueError: if an argument is out of range, or ``score_only_inference`` has no score network
    """

    iterated = ("evaluate", "propose")
    environment_axes = {**MPPIPlanner.environment_axes, "proposals": 2}
    alpha: th.Tensor
    alpha_bar: th.Tensor
    energy_mean: th.Tensor
    energy_std: th.Tensor

    def __init__(
        self,
        world_model: WorldModel,
        iterations: int = 19,
        beta_start: float = 1e-4,
        beta_end: float = 1e-2,
        exploration_std: float = 0.05,
        contrastive_eta: float = 0.01,
        contrastive_clip: float = 5.0,
        contrastive_momentum: float = 0.99,
        use_score_network: bool = False,
        score_only_inference: bool | str = "auto",
        init_noise: float = 0.0,
        time_embed_dim: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(world_model, iterations=iterations, **kwargs)
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"The schedule needs 0 < beta_start <= beta_end < 1, got {beta_start=}, {beta_end=}.")
        if score_only_inference not in (True, False, "auto"):
            raise ValueError(f'{score_only_inference=} is not understood: use True, False or "auto".')
        if score_only_inference is True and not use_score_network:
            raise ValueError("Planning with the score network alone needs one: set use_score_network=True.")
        if time_embed_dim % 2:
            raise ValueError(f"{time_embed_dim=} must be even.")
        self.iterations = iterations  # no extra iterations for large action spaces
        self.exploration_std, self.init_noise, self.time_embed_dim = exploration_std, init_noise, time_embed_dim
        self.score_only_inference = use_score_network if score_only_inference == "auto" else bool(score_only_inference)
        self.contrastive_eta, self.contrastive_clip, self.contrastive_momentum = (
            contrastive_eta,
            contrastive_clip,
            contrastive_momentum,
        )
        alpha = 1 - th.linspace(beta_start, beta_end, iterations + 1)
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("alpha_bar", alpha.cumprod(0), persistent=False)
        self.register_buffer("energy_mean", th.zeros(1))
        self.register_buffer("energy_std", th.ones(1))
        hidden, inputs = world_model.hidden, world_model.input_dim
        make_mlp = world_model.make_mlp
        self.energy_head = make_mlp(inputs + self.action_dim, hidden, 1)
        nn.init.zeros_(self.energy_head[-1].weight)  # type: ignore[arg-type]
        plan_dim = self.horizon * self.action_dim
        self.score_net = make_mlp(inputs + plan_dim + time_embed_dim, hidden, plan_dim) if use_score_network else None

    # -- Energy --------------------------------------------------------------------------------------------------------

    def energy(self, z: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[..., D]``
        :param actions: ``[..., A]``
        :return: logits F that the action is one of the data ``[..., 1]``
        """
        return self.world_model.apply_head(self.energy_head, z, actions)

    def normalise(self, energy: th.Tensor) -> th.Tensor:
        """
        :param energy: any shape
        :return: ``clip((F - m) / s)`` with the running mean m and standard deviation s of the energy
        """
        scaled = (energy - self.energy_mean) / self.energy_std.clamp(min=1e-6)
        return scaled.clamp(-self.contrastive_clip, self.contrastive_clip)

    @th.no_grad()
    def update_statistics(self, energies: th.Tensor, weights: th.Tensor) -> None:
        """
        :param energies: energies of data and negatives ``[2, H, B, 1]``
        :param weights: 1 for transitions of the episode, 0 past its end ``[H, B, 1]``
        """
        total = 2 * weights.sum()
        mean = (weights * energies).sum() / total
        std = ((weights * (energies - mean).square()).sum() / total).sqrt().clamp(min=1e-6)
        self.energy_mean.lerp_(mean.reshape(1), 1 - self.contrastive_momentum)
        self.energy_std.lerp_(std.reshape(1), 1 - self.contrastive_momentum)

    def rewards(self, z: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """:return: rewards of the model plus eta times the normalised energy ``[H, E, N, 1]``"""
        return super().rewards(z, actions) + self.contrastive_eta * self.normalise(self.energy(z, actions))

    # -- Score ---------------------------------------------------------------------------------------------------------

    def soft_mean(self, actions: th.Tensor, values: th.Tensor, elites: int) -> th.Tensor:
        """
        :param actions: candidate sequences ``[H, E, N, A]``
        :param values: estimated returns ``[E, N]``
        :param elites: number of best sequences to average
        :return: mean of the sequences, weighted by the softmax of their standardised returns ``[H, E, A]``
        """
        spread = values.std(1, correction=min(1, values.shape[1] - 1), keepdim=True)
        logits = (values - values.mean(1, keepdim=True)) / spread.where(spread >= MIN_SPREAD, th.ones_like(spread))
        best, index = logits.topk(elites, dim=1)
        weights = (best / self.temperature).softmax(dim=1)
        return (weights.unsqueeze(-1) * self.gather(actions, index)).sum(2)

    def model_score(
        self,
        z: th.Tensor,
        x: th.Tensor,
        tau: th.Tensor | int,
        noise: tuple[th.Tensor, th.Tensor, th.Tensor],
        elites: int,
        proposals: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Estimate the score by sampling in the world model.

        :param z: latent states ``[E, D]``
        :param x: noisy sequences ``[H, E, A]``
        :param tau: step of the diffusion, for all or for each state ``[E]``
        :param noise: normal draws ``[H, E, N - P, A]`` and those of the terminal actions ``[E, N, A]``, and the pair of
            value networks ``[2]``
        :param elites: number of best sequences to average
        :param proposals: sequences of the prior ``[H, E, P, A]``, if any
        :return: score ``[H, E, A]`` and returns of the sequences ``[E, N]``
        """
        samples, terminal, members = noise
        alpha_bar = self.alpha_bar[tau].reshape(-1, 1)
        std = self.world_model.mask_actions(z, ((1 - alpha_bar) / alpha_bar).sqrt().expand_as(x))
        actions = self.sample(x / alpha_bar.sqrt(), std, proposals, samples)
        values = self.evaluate_in_parts(z, actions, terminal, members)
        mean = self.soft_mean(actions, values, elites)
        return (alpha_bar.sqrt() * mean - x) / (1 - alpha_bar), values

    def predict_score(self, z: th.Tensor, x: th.Tensor, tau: th.Tensor) -> th.Tensor:
        """
        :param z: latent states ``[E, D]``
        :param x: noisy sequences ``[H, E, A]``
        :param tau: step of the diffusion for each state ``[E]``
        :return: score predicted by the network ``[H, E, A]``
        """
        assert self.score_net is not None, "the score network does not exist"
        inputs = [self.world_model.inputs(z), x.transpose(0, 1).flatten(1), self.embed_time(tau)]
        return self.score_net(th.cat(inputs, dim=-1)).view(-1, self.horizon, self.action_dim).transpose(0, 1)

    def embed_time(self, tau: th.Tensor) -> th.Tensor:
        """
        :param tau: steps of the diffusion ``[E]``
        :return: sinusoidal embeddings ``[E, time_embed_dim]``
        """
        half = self.time_embed_dim // 2
        rate = -math.log(MAX_PERIOD) / max(half - 1, 1)
        angles = tau.unsqueeze(-1) * (rate * th.arange(half, device=tau.device)).exp()
        return th.cat([angles.sin(), angles.cos()], dim=-1)

    def denoise(self, x: th.Tensor, score: th.Tensor, tau: int) -> th.Tensor:
        """
        :param x: noisy sequences at step tau ``[H, E, A]``
        :param score: score of these sequences ``[H, E, A]``
        :param tau: step of the diffusion, from J down to 1
        :return: less noisy sequences, at step tau - 1 ``[H, E, A]``
        """
        return (x + (1 - self.alpha_bar[tau]) * score) / self.alpha[tau].sqrt()

    # -- Plan ----------------------------------------------------------------------------------------------------------

    def draw(self, n_envs: int, generator: th.Generator, explore: bool) -> PlanNoise:
        """See :class:`MPPIPlanner`; no elite is drawn, and each iteration has its own proposals."""
        normal = partial(th.randn, generator=generator, device=generator.device)
        exploration = normal(n_envs, self.action_dim) if explore else None
        start = normal(self.horizon, n_envs, self.action_dim) if self.init_noise > 0 else None
        if self.score_only_inference:
            none = th.empty(0, device=generator.device)
            return PlanNoise(none, none, none, none, exploration=exploration, start=start)
        proposals = normal(self.iterations, self.horizon, n_envs, self.num_pi_trajs, self.action_dim)
        noise = super().draw(n_envs, generator, explore=False)
        return noise._replace(proposals=proposals, exploration=exploration, start=start)

    @th.no_grad()
    def plan(self, z: th.Tensor, prev_mean: th.Tensor, noise: PlanNoise) -> Plan:
        """
        :param z: latent states ``[E, D]``
        :param prev_mean: the previous plan ``[E, H, A]``; zeros at the start of an episode
        :param noise: random numbers
        :return: action and plan for each environment; its standard deviation is that of the last samples
        """
        mask = self.world_model.mask_actions
        start = mask(z, th.cat([prev_mean[:, 1:], th.zeros_like(prev_mean[:, :1])], dim=1).transpose(0, 1))
        x, values = self.alpha_bar[-1].sqrt() * start, z.new_zeros(z.shape[0], 1)
        if noise.start is not None:
            x = x + mask(z, self.init_noise * noise.start.expand_as(x))
        for j in range(self.iterations):
            tau = self.iterations - j
            if self.score_only_inference:
                score = self.predict_score(z, x, z.new_full(z.shape[:1], tau))
            else:
                draws = (noise.samples[j], noise.terminal[j], noise.members[j])
                proposals = self.maybe_compiled("propose")(z, noise.proposals[j]) if self.num_pi_trajs > 0 else None
                with full_precision(z, tau == 1):  # the mean of the last iteration is the action
                    score, values = self.model_score(z, x, tau, draws, self.num_elites, proposals)
            x = mask(z, self.denoise(x, score, tau))
        x = x.clamp(-1, 1)
        action = x[0]
        if noise.exploration is not None:
            action = action + mask(z, self.exploration_std * noise.exploration)
        std = mask(z, ((1 - self.alpha_bar[1]) / self.alpha_bar[1]).sqrt().expand_as(x))
        return Plan(
            action=action.clamp(-1, 1),
            mean=x.transpose(0, 1),
            std=std.transpose(0, 1),
            elite_action=x[0],
            elite_value=values.amax(1),
        )
