"""MBDPO: plans are denoised, an energy keeps them near the data, and a score network may take the place of samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mpc import MBDPO
from sb3_mpc.common.networks.encoders import DictExtractor, Encoder
from sb3_mpc.common.networks.sizes import resolve_sizes
from sb3_mpc.common.policies.multitask import MultitaskWorldModel
from sb3_mpc.mbdpo.mbdpo import SIZES
from sb3_mpc.mbdpo.planner import DiffusionPlanner
from tests.support.agents import PointEnv, assert_same_state, make_agent, observations_of, sample_windows, two_envs


def test_a_denoising_step_telescopes_to_the_weighted_mean() -> None:
    """With the sampled score, ``x_{tau-1} = sqrt(abar_{tau-1}) a`` whatever x_tau is, for any schedule."""
    for schedule in (dict(), dict(beta_start=0.01, beta_end=0.4)):
        model = make_agent(MBDPO, PointEnv(), iterations=5, num_samples=32, num_elites=8, **schedule)
        planner, generator = model.planner, th.Generator().manual_seed(0)
        noise = planner.draw(3, generator, explore=False)
        z, x = th.rand(3, 16, generator=generator), th.rand(2, 3, 2, generator=generator)
        for j, tau in enumerate(range(5, 0, -1)):
            scale = planner.alpha_bar[tau].sqrt()
            proposals = planner.propose(z, noise.proposals[j])
            std = ((1 - planner.alpha_bar[tau]).sqrt() / scale).expand_as(x)
            actions = planner.sample(x / scale, std, proposals, noise.samples[j])
            values = planner.evaluate(z, actions, noise.terminal[j], noise.members[j])
            mean = planner.soft_mean(actions, values, planner.num_elites)
            draws = (noise.samples[j], noise.terminal[j], noise.members[j])
            score, _ = planner.model_score(z, x, tau, draws, planner.num_elites, proposals)
            x = planner.denoise(x, score, tau)
            th.testing.assert_close(x, planner.alpha_bar[tau - 1].sqrt() * mean, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_energy_tells_the_actions_of_a_state_from_those_of_others() -> None:
    """Two states whose actions in the data differ: only right pairs of states and actions can be learned."""
    model = make_agent(MBDPO, two_envs(), learning_rate=1e-2).learn(12)
    planner = model.planner
    z = th.zeros(2, 8, 16)
    z[:, ::2, 0] = z[:, 1::2, 1] = 1.0
    actions = th.full((2, 8, 2), 0.7)
    actions[:, 1::2] = -0.7
    optimizer = th.optim.Adam(planner.parameters(), lr=1e-2)
    for _ in range(150):
        batch = sample_windows(model)
        batch = batch._replace(actions=actions, mask=th.ones_like(batch.mask))
        loss = model.contrastive_loss(z, batch, model.draw_noise(8).extra)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with th.no_grad():
        assert (planner.energy(z, actions) > planner.energy(z, -actions) + 1).all()
        assert not th.equal(planner.rewards(z[None], actions[None]), planner.rewards(z[None], -actions[None]))


@pytest.mark.parametrize("score_only", [False, "auto"])
def test_score_network_and_diffusion_targets(score_only: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(
        use_score_network=True, score_only_inference=score_only, score_states=4, score_samples=8
    )
    model = make_agent(MBDPO, two_envs(True), target_policy="diffusion", iterations=3, seed=0, **settings)
    before = {name: value.clone() for name, value in model.planner.named_parameters()}
    model.learn(20)
    assert all(not th.equal(before[name], value) for name, value in model.planner.named_parameters())
    assert {"train/score_loss", "train/contrastive_loss"} <= model.logger.name_to_value.keys()
    observation = observations_of(model.get_env(), 3)
    expected = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model")
    loaded = MBDPO.load(tmp_path / "model", env=two_envs(True))
    assert_same_state(loaded.predict(observation, deterministic=True), expected)
    loaded.learn(4, reset_num_timesteps=False)


def test_diffusion_targets_of_plans_with_a_horizon_of_their_own() -> None:
    plans = dict(planner_kwargs=dict(horizon=4))
    model = make_agent(MBDPO, PointEnv(), target_policy="diffusion", policy_kwargs=plans).learn(12)
    assert model._n_updates > 0


def test_an_agent_plans_by_its_score_network_unless_told_to_sample() -> None:
    """The network's weights decide the plan, or do not matter."""
    observation = observations_of(PointEnv(), 3)
    for settings, by_network in (
        (dict(use_score_network=True), True),
        (dict(use_score_network=True, score_only_inference=False), False),
    ):
        model = make_agent(MBDPO, PointEnv(), iterations=3, seed=0, **settings)
        before = model.predict(observation, deterministic=True)[0]
        th.nn.init.ones_(model.planner.score_net[-1].bias)
        assert np.array_equal(before, model.predict(observation, deterministic=True)[0]) != by_network


def test_noise_at_the_start_of_the_diffusion() -> None:
    """With a score of zero, a plan is its start divided by ``sqrt(abar_J / (1 - beta_0))``."""
    model = make_agent(MBDPO, PointEnv(), iterations=3, use_score_network=True, init_noise=0.1)
    planner = model.planner
    th.nn.init.zeros_(planner.score_net[-1].weight)
    noise = planner.draw(4, th.Generator().manual_seed(0), explore=False)
    z, previous = th.rand(4, 16), th.full((4, 2, 2), 0.3)
    shifted = th.cat([previous[:, 1:], th.zeros(4, 1, 2)], dim=1)
    factor = planner.alpha[1:].prod().sqrt()  # alpha_0 belongs to no step
    start = planner.alpha_bar[-1].sqrt() * shifted + 0.1 * noise.start.transpose(0, 1)
    th.testing.assert_close(planner.plan(z, previous, noise).mean, (start / factor).clamp(-1, 1))
    plain = make_agent(MBDPO, PointEnv(), iterations=3, use_score_network=True).planner
    assert plain.draw(4, th.Generator(), explore=False).start is None


# The paper's sizes (its table of models), counted here for mt80: 39 observations, 6 actions, 80 tasks
COUNTS = {2: 1_673_532, 6: 5_970_027, 21: 20_916_843, 54: 53_573_995, 340: 340_242_906}


@pytest.mark.parametrize("size", COUNTS)
def test_sizes_by_the_names_of_the_paper(size: int) -> None:
    model = make_agent(MBDPO, PointEnv(), policy_kwargs=dict(model_size=size))  # whose parts are given, too: small
    assert model.policy_arguments()["model_size"] == model.policy._init_kwargs["model_size"] == SIZES[size]
    sizes = resolve_sizes(SIZES[size], None, None, None, None, None, None, 8)
    with th.device("meta"):
        space = spaces.Dict(obs=spaces.Box(-1, 1, (39,)), task=spaces.Box(-1, 1, (96,)))
        encoder = Encoder(space, DictExtractor(space), sizes.latent_dim, sizes.enc_dim, sizes.num_enc_layers)
        names = ("latent_dim", "hidden", "prior_hidden", "num_q")
        settings = {name: getattr(sizes, name) for name in names}
        world = MultitaskWorldModel(96, [6] * 80, [0.99] * 80, encoder=encoder, action_dim=6, **settings)
        planner = DiffusionPlanner(world)
    parameters = [*world.parameters(), *planner.parameters()]
    assert sum(p.numel() for p in parameters if p.requires_grad) == COUNTS[size]


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match=r"model_size=7 is unknown: use one of \[2, 6, 21, 54, 340\]"):
        make_agent(MBDPO, PointEnv(), policy_kwargs=dict(model_size=7))


def test_score_only_inference_needs_the_network() -> None:
    with pytest.raises(ValueError, match="use_score_network=True"):
        make_agent(MBDPO, PointEnv(), score_only_inference=True)
