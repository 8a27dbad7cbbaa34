"""What sets the methods apart; the contract that they share is tested elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mpc import BMPC, MBDPO, TDMPC2, TDMPCSquare
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.buffers.sequence_buffer import SequenceBatch
from sb3_mpc.common.networks.gaussian import gaussian_kl
from tests.agents import ALGORITHMS, PointEnv, assert_same_state, make_agent, observations_of, vec

PLANNERS_OF_DATA = [TDMPCSquare, BMPC]


def two_envs(terminate: bool = False) -> Any:
    return vec(lambda: PointEnv(3, terminate=terminate), lambda: PointEnv(5))


def sample(model: Any, batch_size: int = 8) -> SequenceBatch:
    model.policy.set_training_mode(True)
    return model.replay_buffer.sample(batch_size)


# --- plans in the replay buffer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", PLANNERS_OF_DATA)
def test_plans_are_stored_beside_their_actions(algorithm: Any) -> None:
    model = make_agent(algorithm, two_envs(), learning_starts=8, gradient_steps=0)
    plans: list[np.ndarray] = []
    model.learn(20, callback=lambda local, _: plans.append(store(model)) is None)
    stored = model.replay_buffer.plans[:10]
    assert np.isnan(stored[:4]).all()  # the seeding phase has no plan
    np.testing.assert_array_equal(stored[4:].transpose(0, 2, 1, 3), np.stack(plans[4:]))
    assert (stored[4:, :, 1] >= model.min_std).all() and (np.abs(stored[4:, :, 0]) <= 1).all()


def store(model: Any) -> np.ndarray:
    plan = model._last_plan
    return np.full((2, 2, 2), np.nan) if plan is None else model.plan_to_store(plan).numpy()


def test_plans_follow_their_transitions_through_wrapping_and_windows() -> None:
    """Each plan is made of its own transition's number, so that a misplaced one is seen."""
    space = spaces.Box(-1, 1, (1,), np.float32)
    buffer = PlanReplayBuffer(20, spaces.Box(-1, 1000, (1,)), space, "cpu", n_envs=2, horizon=3)
    for step in range(17):
        number = np.array([[step], [100 + step]], np.float32)
        done = np.array([step % 4 == 3, step % 5 == 4])
        buffer.add(number, number + 1, number / 1000, np.zeros(2), done, [{}, {}])
        buffer.store_plans(np.stack([number, 1 + 0 * number]))
    batch = buffer.sample(64)
    assert batch.plans is not None and batch.buffer_index is not None
    close = batch.mask[..., 0] > 0
    assert th.equal(batch.plans[0][close], batch.observations[:-1][close])
    rows, envs = batch.buffer_index
    assert th.allclose(th.from_numpy(buffer.actions[rows, envs]), batch.actions)
    buffer.store_plans(np.full((2, 1, 1), 7.0), rows[:1, 0], envs[:1, 0])
    assert (buffer.plans[rows[0, 0], envs[0, 0]] == 7).all()
    buffer.add(number, number, number / 1000, np.zeros(2), done, [{}, {}])
    assert np.isnan(buffer.plans[17 % 10]).all()  # the plan of what was there before is forgotten


@pytest.mark.parametrize("algorithm", PLANNERS_OF_DATA)
def test_buffers_with_plans_are_saved_and_others_refused(algorithm: Any, tmp_path: Path) -> None:
    model = make_agent(algorithm, two_envs()).learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make_agent(algorithm, two_envs())
    other.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(other.replay_buffer.plans[:10], model.replay_buffer.plans[:10])
    make_agent(TDMPC2, two_envs()).learn(20).save_replay_buffer(tmp_path / "plain")
    with pytest.raises(ValueError, match=f"PlanReplayBuffer of this package as {algorithm.__name__} needs it"):
        other.load_replay_buffer(tmp_path / "plain")
    make_agent(TDMPC2, two_envs()).load_replay_buffer(tmp_path / "buffer")  # more than it needs does not hurt


def test_own_arguments_are_shown_and_checked() -> None:
    for algorithm, name in ((TDMPCSquare, "constraint_scaling"), (BMPC, "kl_direction"), (MBDPO, "target_policy")):
        with pytest.raises(ValueError, match=f"{name}='nonsense' is unknown: use"):
            make_agent(algorithm, PointEnv(), **{name: "nonsense"})
    with pytest.raises(TypeError, match="no_such_argument"):
        make_agent(MBDPO, PointEnv(), no_such_argument=1)


# --- TD-M(PC)² --------------------------------------------------------------------------------------------------------


def test_constraint_waits_for_the_scale_and_has_three_weights() -> None:
    model = make_agent(TDMPCSquare, two_envs()).learn(20)
    batch, noise = sample(model), model.draw_noise(8)
    zs = th.rand(3, 8, 16)
    losses = {}
    for scaling in model.constraint_scalings:
        for scale in (1.0, 50.0):
            model.constraint_scaling = scaling
            model.policy.running_scale.value.fill_(scale)
            loss, logs = model.policy_loss(zs, batch, noise)
            losses[scaling, scale] = (loss - logs["pi_q_loss"]).item()
            assert logs["constraint_active"] == (scale > 2.0)
    assert all(losses[scaling, 1.0] == 0 for scaling in model.constraint_scalings)
    code, readme, paper = (losses[scaling, 50.0] for scaling in model.constraint_scalings)
    assert code == pytest.approx(readme * 2 / 61, rel=1e-4) and paper == pytest.approx(readme / 2, rel=1e-4)


def test_constraint_pulls_the_prior_to_the_plans() -> None:
    model = make_agent(TDMPCSquare, two_envs(), prior_coef=1e3, learning_rate=1e-2, scale_threshold=0.5).learn(20)
    plans = th.tensor([[0.6, -0.3], [0.1, 0.1]]).view(2, 1, 1, 2)
    zs = th.rand(3, 8, 16)
    for _ in range(150):
        batch = sample(model)
        loss, _ = model.policy_loss(zs, batch._replace(plans=plans.expand(2, 2, 8, 2)), model.draw_noise(8))
        model._step(model.policy.pi_optimizer, loss)
    with th.no_grad():
        assert (model.policy.world_model.act(zs, None) - plans[0]).abs().max() < 0.15


# --- BMPC -------------------------------------------------------------------------------------------------------------


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
    batch, before = sample(model), model.replay_buffer.plans.copy()
    fresh = model.reanalyze(batch, 3, model._reanalyzer.draw(6, model.policy.generator, explore=True))
    assert th.equal(fresh.plans[:, :, 3:].nan_to_num(), batch.plans[:, :, 3:].nan_to_num())
    alive = batch.mask[:, :3, 0].numpy() > 0
    rows, envs = batch.buffer_index[:, :, :3]
    changed = (np.nan_to_num(model.replay_buffer.plans) != np.nan_to_num(before)).any((2, 3))
    assert set(zip(*np.nonzero(changed), strict=True)) == set(zip(rows[alive], envs[alive], strict=True))
    assert not fresh.plans[:, :, :3].isnan().any()


def test_imitation_reaches_the_expert_in_both_directions() -> None:
    for direction in ("reverse", "forward"):
        model = make_agent(BMPC, two_envs(), kl_direction=direction, learning_rate=1e-2, entropy_coef=0.0).learn(12)
        plans = th.tensor([[0.5, -0.4], [0.3, 0.2]]).view(2, 1, 1, 2).expand(2, 2, 8, 2)
        zs = th.rand(3, 8, 16)
        for _ in range(200):
            loss, _ = model.policy_loss(zs, sample(model)._replace(plans=plans), model.draw_noise(8))
            model._step(model.policy.pi_optimizer, loss)
        mean, log_std = model.policy.world_model.gaussian(zs[:-1])
        assert (mean - plans[0]).abs().max() < 0.1 and (log_std.exp() - plans[1]).abs().max() < 0.1


def test_value_target_stops_at_a_predicted_termination() -> None:
    model = make_agent(BMPC, two_envs(terminate=True), td_horizon=3, episodic=True).learn(20)
    world, batch, noise = model.policy.world_model, sample(model), model.draw_noise(8)
    next_z = world.encode(batch.observations)[1:]
    world.termination_head[-1].bias.data.fill_(1e4)  # every step ends the episode
    ended = model.value_target(next_z, batch, noise)
    z = th.cat([world.encode(batch.observations[0])[None], next_z[:-1]])
    first = world.two_hot.decode(world.reward(z, world.act(z, noise.target_actions[0])))
    assert th.allclose(ended, first)
    world.termination_head[-1].bias.data.fill_(-1e4)
    assert not th.allclose(model.value_target(next_z, batch, noise), first)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_network_policy_acts_without_a_plan(algorithm: type[WorldModelAlgorithm]) -> None:
    model = make_agent(algorithm, two_envs()).learn(20)
    observation = observations_of(model.get_env(), 3)
    action, state = model.predict(observation, deterministic=True, use_planner=False)
    np.testing.assert_array_equal(action, model.actor.predict(observation, deterministic=True)[0])
    assert state is None and not np.allclose(action, model.predict(observation, deterministic=True)[0])


def test_several_tasks_are_refused_by_bmpc() -> None:
    from sb3_mpc.common.policies.multitask import MultitaskWorldModelPolicy
    from tests.test_multitask import TwoTasksEnv

    with pytest.raises(ValueError, match="BMPC learns one task"):
        make_agent(BMPC, TwoTasksEnv(), policy=MultitaskWorldModelPolicy)


# --- MBDPO ------------------------------------------------------------------------------------------------------------


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
        batch = sample(model)
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
