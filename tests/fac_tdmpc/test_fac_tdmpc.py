"""Fac-TDMPC: the factored model is a set of independent ones, plans decompose, and the student learns to rank."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import BMPC, MBDPO, TDMPC2, FacTDMPC, TDMPCSquare
from sb3_mpc.common.networks.layers import SimNorm
from sb3_mpc.fac_tdmpc.distillation import expert_scores, ranking_loss, student_scores
from sb3_mpc.fac_tdmpc.world_model import ActionGroups, GroupedMLP
from tests.support.agents import (
    PointEnv,
    SpaceEnv,
    assert_one_clear_sentence,
    assert_same_state,
    make_agent,
    observations_of,
    vec,
)

THREE = SpaceEnv(spaces.Box(-1.0, 1.0, (4,), np.float32), spaces.Box(-1.0, 1.0, (3,), np.float32))


def fill(module: th.nn.Module, seed: int = 0) -> None:
    """Give every parameter random values, so that no layer is zero."""
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def three() -> Any:
    """An undistilled agent with three action dimensions in two groups."""
    model = make_agent(FacTDMPC, THREE, action_groups=[[0, 2], [1]], horizon=1, seed=0)
    fill(model.policy.student)
    return model


@pytest.mark.parametrize("simplex", [None, 4])
def test_grouped_networks_equal_a_loop(simplex: int | None) -> None:
    network = GroupedMLP(3, 5, [6, 7], 8, None if simplex is None else SimNorm(simplex))
    fill(network)
    x = th.randn(3, 11, 5)
    for group, out in enumerate(network(x)):
        expected = x[group]
        for i, layer in enumerate(network.layers):
            expected = F.linear(expected, layer.weight[group], layer.bias[group])
            if i < 2 or simplex:
                expected = F.layer_norm(expected, expected.shape[-1:], layer.ln_weight[group], layer.ln_bias[group])
            if i < 2:
                expected = F.mish(expected)
            elif simplex:
                expected = expected.view(11, -1, simplex).softmax(-1).flatten(1)
        th.testing.assert_close(out, expected, rtol=1e-4, atol=1e-6)


def test_groups_split_and_join() -> None:
    groups = ActionGroups([[2, 0], [3], [1, 4]])
    x = th.arange(2 * 3 * 5.0).view(2, 3, 5) + 1  # two environments, three steps
    split = groups.split(x, 0)
    assert split.shape == (6, 3, 2)
    assert split[0, 0].tolist() == [3, 1] and split[1, 0].tolist() == [18, 16]
    assert split[2, 0].tolist() == [4, 0], "a smaller group is filled up with zeros"
    th.testing.assert_close(groups.join(split), x)


def test_blocks_never_share_a_simplex() -> None:
    """Sizes of the paper's tasks: 170, 128, 102, 85 and 42 features a group."""
    for dim, block, simplex in ((3, 170, 5), (4, 128, 8), (5, 102, 6), (6, 85, 5), (12, 42, 7)):
        env = SpaceEnv(spaces.Box(-1.0, 1.0, (4,), np.float32), spaces.Box(-1.0, 1.0, (dim,), np.float32))
        z = make_agent(FacTDMPC, env, policy_kwargs=dict(latent_dim=512)).policy.student.encode(th.zeros(2, 4))
        assert z.shape == (2, dim * block)
        th.testing.assert_close(z.view(2, -1, simplex).sum(-1), th.ones(2, dim * block // simplex))


def test_no_state_is_constant() -> None:
    """A softmax over one feature would be: the share of 512 features of one of 7 or 38 actions has no small divisor."""
    for dim in (7, 11, 22, 29, 38, 39, 43, 61):
        env = SpaceEnv(spaces.Box(-1.0, 1.0, (4,), np.float32), spaces.Box(-1.0, 1.0, (dim,), np.float32))
        z = make_agent(FacTDMPC, env, policy_kwargs=dict(latent_dim=512)).policy.student.encode(th.randn(5, 4))
        assert (z.std(0) > 0).all(), dim


def test_size_of_the_student() -> None:
    env = SpaceEnv(spaces.Box(-1.0, 1.0, (4,), np.float32), spaces.Box(-1.0, 1.0, (3,), np.float32))
    sizes = dict(latent_dim=24, net_arch=[48], student_latent_dim=96, student_net_arch=[40, 36])
    policy = make_agent(FacTDMPC, env, policy_kwargs=sizes).policy
    assert policy.world_model.latent_dim == 24 and policy.student.latent_dim == 96
    assert [layer.weight.shape[1:] for layer in policy.student.reward_head.layers] == [(40, 33), (36, 40), (1, 36)]


def test_best_joint_plan_is_the_groups_best_plans(three: Any) -> None:
    """Proposition 1 by brute force: all joint plans of two steps on a grid of three values a dimension."""
    planner, model = three.policy.student_planner, three.policy.student
    z = model.encode(th.randn(1, 4))
    plans = th.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=6))).view(1, -1, 2, 3)  # [1, 729, H + 1, A]
    joint = plans.permute(2, 0, 1, 3)
    scores, _ = student_scores(model, z, joint)
    returns = scores.rewards[0, 0] + three.gamma * scores.values[:, 1, 0].mean(0)
    parts = planner.evaluate(model.split(z), model.groups.split(joint, 1), th.empty(0), th.empty(0))
    th.testing.assert_close(parts.sum(0), returns, rtol=1e-5, atol=1e-5)
    best = plans[0, returns.argmax()]
    for group, dimensions in enumerate(([0, 2], [1])):
        th.testing.assert_close(plans[0, parts[group].argmax()][:, dimensions], best[:, dimensions])
    assert returns.std() > 0.01, "the model does tell plans apart"


def test_groups_plan_for_themselves(three: Any) -> None:
    """What one group draws does not change what the other one does."""
    planner = three.policy.student_planner
    z, mean = three.policy.student.encode(th.randn(2, 4)), th.zeros(2, 2, 3)
    noise = planner.draw(2, th.Generator().manual_seed(0), explore=True)
    other = planner.draw(2, th.Generator().manual_seed(1), explore=True)
    first = slice(0, 2)  # rows of the first group, dimensions 0 and 2
    mixed = noise._replace(samples=other.samples.clone(), selection=other.selection, exploration=other.exploration)
    mixed.samples[:, :, first] = noise.samples[:, :, first]
    mixed = mixed._replace(
        selection=th.cat([noise.selection[first], other.selection[2:]]),
        exploration=th.cat([noise.exploration[first], other.exploration[2:]]),
    )
    plan, changed = planner.plan(z, mean, noise), planner.plan(z, mean, mixed)
    th.testing.assert_close(plan.action[:, [0, 2]], changed.action[:, [0, 2]])
    assert not th.allclose(plan.action[:, 1], changed.action[:, 1])
    assert plan.mean.shape == plan.std.shape == (2, 2, 3) and plan.elite_value.shape == (2,)


@pytest.mark.parametrize("reverse", [False, True])
def test_ranking_loss_by_hand(reverse: bool) -> None:
    expert, student = np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.0, 3.0])
    p, q = (np.exp(x / (2 * 0.5)) / np.exp(x / (2 * 0.5)).sum() for x in (expert, student))
    if reverse:
        p, q = q, p
    loss = ranking_loss(th.tensor(student), th.tensor(expert), th.tensor(0.5), temperature=2.0, reverse=reverse)
    assert loss.item() == pytest.approx((p * np.log(p / q)).sum())


def rank_correlation(x: th.Tensor, y: th.Tensor) -> float:
    """Spearman's correlation along the last dimension, averaged over the others."""
    x, y = (part.argsort(-1).argsort(-1).float() for part in (x, y))
    x, y = (part - part.mean(-1, keepdim=True) for part in (x, y))
    return ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).mean().item()


@pytest.fixture(scope="module")
def expert() -> Any:
    return make_agent(TDMPC2, PointEnv(), seed=0, learning_rate=3e-3, policy_kwargs=dict(net_arch=[32])).learn(150)


@pytest.mark.slow
def test_student_ranks_like_the_expert(expert: Any) -> None:
    """On states and actions that it has not seen."""

    def correlation(model: Any) -> float:
        generator = th.Generator().manual_seed(7)
        observations = th.rand(32, 3, generator=generator) * 2 - 1
        actions = th.rand(3, 32, 16, 2, generator=generator) * 2 - 1
        teacher, student = model.policy.world_model, model.policy.student
        its, *_ = expert_scores(teacher, teacher.encode(observations), actions, th.zeros_like(actions), model.gamma)
        with th.no_grad():
            mine, _ = student_scores(student, student.encode(observations), actions)
        return rank_correlation(mine.values.mean(0), its.values[0])

    settings: Any = dict(distill_batch_size=64, distill_learning_rate=3e-3)
    untrained = correlation(FacTDMPC.distill(expert, steps=0, **settings))
    trained = correlation(FacTDMPC.distill(expert, steps=300, **settings))
    assert trained > 0.8 > 0.3 > abs(untrained)


@pytest.mark.slow
@pytest.mark.parametrize("method", [TDMPCSquare, BMPC, MBDPO])
def test_experts_of_other_methods(method: Any) -> None:
    expert = make_agent(method, PointEnv(), seed=0).learn(20)
    model = FacTDMPC.distill(expert, steps=2, distill_batch_size=8)
    assert PointEnv().action_space.contains(model.predict(observations_of(PointEnv(), 1)[0])[0])
    collected = FacTDMPC("MlpPolicy", PointEnv(), expert=expert, distill_batch_size=8, seed=0)
    collected.learn(12)
    assert collected.replay_buffer.size() == 12 and collected.policy.distilled
    assert_same_state(collected.policy.world_model.state_dict(), expert.policy.world_model.state_dict())


def test_distilled_agent_needs_no_expert(expert: Any, tmp_path: Path) -> None:
    expert.save_replay_buffer(tmp_path / "buffer")
    model = FacTDMPC.distill(expert, tmp_path / "buffer.pkl", steps=3, distill_batch_size=8)
    model.save(tmp_path / "student")
    loaded = FacTDMPC.load(tmp_path / "student", env=PointEnv())
    observations = observations_of(PointEnv(), 4)
    expected = model.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    loaded.learn(12)  # goes on with the expert in the file


def test_expert_acts_until_the_student_exists() -> None:
    model = make_agent(FacTDMPC, PointEnv(), seed=0)
    twin = make_agent(TDMPC2, PointEnv(), seed=0)
    twin.policy.world_model.load_state_dict(model.policy.world_model.state_dict())
    observations = observations_of(PointEnv(), 2)
    action, state = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(action, twin.predict(observations, deterministic=True)[0])
    assert state[0].shape == (2, model.horizon, 2)
    state = model.learn(12).predict(observations)[1]
    assert state[0].shape == (2, model.horizon + 1, 2), "the student plans the last action, too"
    assert model.actor.world_model is model.policy.student


@pytest.mark.parametrize("groups", [[[0]], [[0, 1], [1]], [[0], [1], []], [[0, 2], [1]], 3])
def test_wrong_groups(groups: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(FacTDMPC, PointEnv(), action_groups=groups)
    assert_one_clear_sentence(error.value, "action_groups", "exactly once")


def test_expert_of_another_environment(expert: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(FacTDMPC, THREE, expert=expert)
    assert_one_clear_sentence(error.value, "expert", "observation space", "give")


@pytest.mark.parametrize("wrong", [dict(kl_direction="both"), dict(num_candidates=1), dict(distill_steps="many")])
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(FacTDMPC, PointEnv(), **wrong)
    assert_one_clear_sentence(error.value, next(iter(wrong)), "use")


def test_wrong_expert(expert: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(FacTDMPC, PointEnv(), expert="expert.zip")
    assert_one_clear_sentence(error.value, "expert='expert.zip'", "load")
    with pytest.raises(ValueError) as error:
        make_agent(FacTDMPC, PointEnv(), expert=expert, policy_kwargs=dict(latent_dim=32))
    assert_one_clear_sentence(error.value, "policy_kwargs", "student_latent_dim")


def test_positional_arguments_beside_an_expert(expert: Any) -> None:
    model = FacTDMPC("MlpPolicy", PointEnv(), 3e-4, 500, 7, expert=expert)
    assert (model.buffer_size, model.learning_starts, model.horizon) == (500, 7, expert.horizon)


def test_no_distillation(expert: Any) -> None:
    model = make_agent(FacTDMPC, PointEnv(), distill_steps=0).learn(12)
    assert not model.policy.distilled, "an untrained student must not act"
    assert not FacTDMPC.distill(expert, steps=0).policy.distilled
    with pytest.raises(ValueError) as error:
        FacTDMPC.distill(expert, steps=-1)
    assert_one_clear_sentence(error.value, "steps=-1", "use")


class Seen(FacTDMPC):
    """Remembers the batches that it is distilled from."""

    largest = 0.0

    def distill_update(self, batch: Any, noise: Any) -> Any:
        self.largest = max(self.largest, batch.observations.abs().max().item())
        return super().distill_update(batch, noise)


def test_student_sees_normalised_observations_as_the_expert_does() -> None:
    large = spaces.Box(-1000.0, 1000.0, (4,), np.float32)
    env = VecNormalize(vec(lambda: SpaceEnv(large, THREE.action_space)))
    expert = make_agent(TDMPC2, env).learn(40)
    assert np.abs(expert.replay_buffer.observations).max() > 100
    model = Seen.distill(expert, steps=3, distill_batch_size=8)
    assert 0 < model.largest <= 10
    assert model.get_vec_normalize_env() is env


def test_replay_buffer_of_another_device(expert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert.replay_buffer, "device", th.device("meta"))
    FacTDMPC.distill(expert, steps=2, distill_batch_size=8, device="cpu")
    assert expert.replay_buffer.device.type == "meta"
