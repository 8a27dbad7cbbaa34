"""TD-M(PC)²: the prior is held to the plans in the replay buffer."""

import numpy as np
import pytest
import torch as th

from sb3_mpc import TDMPCSquare
from sb3_mpc.common.execution.gradients import gradient_step
from tests.support.agents import make_agent, sample_windows, two_envs


def test_constraint_waits_for_the_scale_and_has_three_weights() -> None:
    model = make_agent(TDMPCSquare, two_envs()).learn(20)
    batch, noise = sample_windows(model), model.draw_noise(8)
    zs = th.rand(3, 8, 16)
    losses = {}
    for scaling in model.choices["constraint_scaling"]:
        for scale in (1.0, 50.0):
            model.constraint_scaling = scaling
            model.policy.running_scale.value.fill_(scale)
            loss, logs = model.policy_loss(zs, batch, noise)
            losses[scaling, scale] = (loss - logs["pi_q_loss"]).item()
            assert logs["constraint_active"] == (scale > 2.0)
    assert all(losses[scaling, 1.0] == 0 for scaling in model.choices["constraint_scaling"])
    code, readme, paper = (losses[scaling, 50.0] for scaling in model.choices["constraint_scaling"])
    assert code == pytest.approx(readme * 2 / 61, rel=1e-4) and paper == pytest.approx(readme / 2, rel=1e-4)


def test_plans_of_seeding_and_of_data() -> None:
    """Random actions have the prior's largest deviation; those that a user adds have 2 (both as the official code)."""
    model = make_agent(TDMPCSquare, two_envs(), learning_starts=8, buffer_size=40).learn(8)
    batch = sample_windows(model)
    mean, std = model.planned(batch)
    alive = batch.mask[..., 0] > 0
    assert th.equal(mean[alive], batch.actions[alive]) and th.allclose(std, th.tensor(2.0).exp())
    buffer = model.replay_buffer
    observation = np.zeros((2, 3), np.float32)
    for _ in range(buffer.buffer_size):  # nothing else is left
        buffer.add(observation, observation, np.full((2, 2), 0.3), np.zeros(2), np.zeros(2), [{}, {}])
    mean, std = model.planned(sample_windows(model))
    assert (mean == np.float32(0.3)).all() and (std == 2).all()


def test_awac_weighs_densities_by_advantages() -> None:
    """Actions with a higher value than those of the prior count more; the density is that of the squashed Gaussian."""
    model = make_agent(TDMPCSquare, two_envs(), actor_mode="awac", awac_lambda=0.5, policy_kwargs=dict(dropout=0.0))
    model.learn(20)
    world, batch, noise = model.policy.world_model, sample_windows(model), model.draw_noise(8)
    batch = batch._replace(actions=(2 * th.rand(2, 8, 2) - 1) * 0.99)
    zs = th.rand(3, 8, 16)
    mean, log_std = world.prior(zs[:-1])
    squashed = th.distributions.TransformedDistribution(
        th.distributions.Normal(mean, log_std.exp()), th.distributions.TanhTransform()
    )
    density = model.log_prob(zs[:-1], batch.actions)
    expected = squashed.log_prob(batch.actions).sum(-1, keepdim=True)
    th.testing.assert_close(density, expected, rtol=1e-3, atol=1e-2)
    assert model.log_prob(zs[:-1], th.ones(2, 8, 2)).isfinite().all()
    world.value = lambda z, action, *args, **kwargs: action.sum(-1, keepdim=True).expand(2, *action.shape[:-1], 1)
    world.two_hot.decode = lambda value: value  # the larger the action, the better
    loss, logs = model.policy_loss(zs, batch, noise)
    drawn = th.tanh(mean + noise.policy_actions[:2] * log_std.exp())
    advantage = (batch.actions - drawn).sum(-1, keepdim=True) / model.policy.running_scale.value
    weights = (advantage / 0.5).exp().clamp(0.1, 10)
    assert weights.min() < 0.5 and weights.max() > 2
    time = th.tensor([1.0, model.rho]).view(2, 1, 1) * batch.mask
    th.testing.assert_close(loss, -(time * weights.detach() * density).mean())
    th.testing.assert_close(logs["pi_awac_weight"], weights.mean())


@pytest.mark.slow
def test_constraint_pulls_the_prior_to_the_plans() -> None:
    model = make_agent(TDMPCSquare, two_envs(), prior_coef=1e3, learning_rate=1e-2, scale_threshold=0.5).learn(20)
    plans = th.tensor([[0.6, -0.3], [0.1, 0.1]]).view(2, 1, 1, 2)
    zs = th.rand(3, 8, 16)
    for _ in range(150):
        batch = sample_windows(model)
        loss, _ = model.policy_loss(
            zs, batch._replace(plans=plans.expand(2, 2, 8, 2), planned=None), model.draw_noise(8)
        )
        gradient_step(model.policy.pi_optimizer, loss, model.max_grad_norm)
    with th.no_grad():
        assert (model.policy.world_model.act(zs, None) - plans[0]).abs().max() < 0.15
