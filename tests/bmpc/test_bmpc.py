"""BMPC: the prior imitates plans that are made anew now and then, and values are those of states."""

import numpy as np
import pytest
import torch as th

from sb3_mpc import BMPC
from sb3_mpc.common.execution.gradients import gradient_step
from sb3_mpc.common.networks.gaussian import gaussian_kl
from tests.support.agents import make_agent, sample_windows, two_envs


def test_divergence_of_gaussians() -> None:
    p, q = th.distributions.Normal(th.tensor(0.3), th.tensor(0.5)), th.distributions.Normal(th.tensor(-1.0), 2.0)
    expected = th.distributions.kl_divergence(p, q)
    assert th.allclose(gaussian_kl(p.mean, p.stddev, q.mean, q.stddev), expected)


def test_reanalysis_comes_at_its_interval_and_writes_to_the_buffer() -> None:
    model = make_agent(
        BMPC, two_envs(), seed=0, reanalyze_interval=4, reanalyze_batch_size=3, pretrain_gradient_steps=5
    )
    counts = []
    reanalyze = model.reanalyze
    model.reanalyze = lambda batch, count, noise: counts.append(model.num_timesteps) or reanalyze(batch, count, noise)
    model.learn(8 + 2 * 8)
    assert counts == [16, 24]  # every fourth update of those after the burst
    del model.reanalyze
    batch, before = sample_windows(model), model.replay_buffer.plans.copy()
    fresh = model.reanalyze(batch, 3, model._reanalyzer.draw(6, model.policy.generator, explore=True))
    assert th.equal(fresh.plans[:, :, 3:].nan_to_num(), batch.plans[:, :, 3:].nan_to_num())
    alive = batch.mask[:, :3, 0].numpy() > 0
    rows, envs = batch.buffer_index[:, :, :3]
    changed = (np.nan_to_num(model.replay_buffer.plans) != np.nan_to_num(before)).any((2, 3))
    assert set(zip(*np.nonzero(changed), strict=True)) == set(zip(rows[alive], envs[alive], strict=True))
    assert not fresh.plans[:, :, :3].isnan().any()


@pytest.mark.slow
def test_imitation_reaches_the_expert_in_both_directions() -> None:
    for direction in ("reverse", "forward"):
        model = make_agent(BMPC, two_envs(), kl_direction=direction, learning_rate=1e-2, entropy_coef=0.0).learn(12)
        plans = th.tensor([[0.5, -0.4], [0.3, 0.2]]).view(2, 1, 1, 2).expand(2, 2, 8, 2)
        zs = th.rand(3, 8, 16)
        for _ in range(200):
            loss, _ = model.policy_loss(
                zs, sample_windows(model)._replace(plans=plans, planned=None), model.draw_noise(8)
            )
            gradient_step(model.policy.pi_optimizer, loss, model.max_grad_norm)
        mean, log_std = model.policy.world_model.gaussian(zs[:-1])
        assert (mean - plans[0]).abs().max() < 0.1 and (log_std.exp() - plans[1]).abs().max() < 0.1


def test_value_target_stops_at_a_predicted_termination() -> None:
    model = make_agent(BMPC, two_envs(terminate=True), td_horizon=3, episodic=True).learn(20)
    world, batch, noise = model.policy.world_model, sample_windows(model), model.draw_noise(8)
    next_z = world.encode(batch.observations)[1:]
    world.termination_head[-1].bias.data.fill_(1e4)  # every step ends the episode
    ended = model.value_target(next_z, batch, noise)
    z = th.cat([world.encode(batch.observations[0])[None], next_z[:-1]])
    first = world.two_hot.decode(world.reward(z, world.act(z, noise.target_actions[0])))
    assert th.allclose(ended, first)
    world.termination_head[-1].bias.data.fill_(-1e4)
    assert not th.allclose(model.value_target(next_z, batch, noise), first)


def test_values_of_actions_are_learned_from_replayed_transitions() -> None:
    """The official code's target with use_v_instead_q=false: reward and the mean of two target values."""
    model = make_agent(BMPC, two_envs(terminate=True), values_of="actions", reanalyze_interval=2, seed=0).learn(40)
    world, batch, noise = model.policy.world_model, sample_windows(model), model.draw_noise(8)
    next_z = world.encode(batch.observations)[1:]
    with th.no_grad():
        target = model.value_target(next_z, batch, noise)
        mean, log_std = world.gaussian(next_z)
        action = (mean + noise.target_actions[0] * log_std.exp()).clamp(-1, 1)
        first, second = world.two_hot.decode(world.value(next_z, action, target=True))
        expected = batch.rewards + model.gamma * (1 - batch.terminated) * (first + second) / 2
    th.testing.assert_close(target, expected)
    assert batch.terminated.any() and not th.equal(first, second)
    assert not th.equal(world.value(next_z, action), world.value(next_z, -action))


def test_likelihood_of_plans_as_loss() -> None:
    """Negative log-density of the mean of each plan, per action dimension; nothing where there is none."""
    model = make_agent(BMPC, two_envs(), imitation_loss="log_prob").learn(16)
    batch, world = sample_windows(model), model.policy.world_model
    planned = th.zeros(2, 8, 1, dtype=th.bool)
    planned[:, ::2] = True
    batch = batch._replace(plans=th.rand(2, 2, 8, 2), planned=planned)
    zs, noise = th.rand(3, 8, 16), model.draw_noise(8)
    mean, log_std = world.gaussian(zs[:-1])
    error = model.imitation_error(zs[:-1], mean, log_std, batch)
    density = th.distributions.Normal(mean, log_std.exp()).log_prob(batch.plans[0])
    th.testing.assert_close(error[planned], -density.mean(-1, keepdim=True)[planned])
    assert (error[~planned] == 0).all()
    model.entropy_coef = 0.0
    loss, logs = model.policy_loss(zs, batch, noise)
    weights = th.tensor([1.0, model.rho]).view(2, 1, 1) * batch.mask
    th.testing.assert_close(loss, (weights * error / model.policy.running_scale.value).mean())
    th.testing.assert_close(logs["pi_log_prob"], error.mean())


def test_horizon_of_the_reanalysis_is_its_own() -> None:
    model = make_agent(BMPC, two_envs(), reanalyze_horizon=4, reanalyze_interval=2, seed=0)
    lengths, draw = [], model._reanalyzer.draw
    model._reanalyzer.draw = lambda *args, **kwargs: lengths.append(args[0]) or draw(*args, **kwargs)
    model.learn(20)
    assert model._reanalyzer.horizon == 4 and model.policy.planner.horizon == 2 and set(lengths) == {2 * 16}
    assert make_agent(BMPC, two_envs(), horizon=3)._reanalyzer.horizon == 3
    with pytest.raises(ValueError, match="reanalyze_horizon=0 is out of range"):
        make_agent(BMPC, two_envs(), reanalyze_horizon=0)


def test_planner_kwargs_of_every_planner_hold_for_the_reanalysis() -> None:
    own = dict(temperature=2.0, min_std=0.2)
    policy_kwargs = dict(planner_kwargs=own)
    model = make_agent(BMPC, two_envs(), policy_kwargs=policy_kwargs, reanalyze_horizon=4)
    for planner in (model.policy.planner, model._reanalyzer):
        assert (planner.temperature, planner.min_std, planner.num_samples) == (2.0, 0.2, model.num_samples)
    assert model._reanalyzer.horizon == 4
