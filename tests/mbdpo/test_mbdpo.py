"""MBDPO: plans are denoised, an energy keeps them near the data, and a score network may take the place of samples."""

from pathlib import Path

import pytest
import torch as th

from sb3_mpc import MBDPO
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


@pytest.mark.parametrize("score_only", [False, True])
def test_score_network_and_diffusion_targets(score_only: bool, tmp_path: Path) -> None:
    settings = dict(use_score_network=True, score_only_inference=score_only, score_states=4, score_samples=8)
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


def test_score_only_inference_needs_the_network() -> None:
    with pytest.raises(ValueError, match="use_score_network=True"):
        make_agent(MBDPO, PointEnv(), score_only_inference=True)
