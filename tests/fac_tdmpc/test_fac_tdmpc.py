"""Fac-TDMPC: the factored model is a set of independent ones, plans decompose, and the student learns to rank."""

import csv
import io
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mpc import BMPC, MBDPO, TDMPC2, FacTDMPC, TDMPCSquare
from sb3_mpc.common.networks.layers import SimNorm
from sb3_mpc.fac_tdmpc.distillation import expert_scores, ranking_loss, student_scores
from sb3_mpc.fac_tdmpc.world_model import ActionGroups, GroupedMLP
from sb3_mpc.offline import Dataset
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
        student = make_agent(FacTDMPC, env, policy_kwargs=dict(latent_dim=512)).policy.student
        blocks = student.split(student.encode(th.zeros(2, 4)))
        assert blocks.shape == (dim * 2, block)
        th.testing.assert_close(blocks.view(-1, simplex).sum(-1), th.ones(dim * 2 * block // simplex))


def test_no_state_is_constant() -> None:
    """A softmax over one feature would be: the share of 512 features of one of 7 or 38 actions has no small divisor."""
    for dim in (7, 11, 22, 29, 38, 39, 43, 61):
        env = SpaceEnv(spaces.Box(-1.0, 1.0, (4,), np.float32), spaces.Box(-1.0, 1.0, (dim,), np.float32))
        student = make_agent(FacTDMPC, env, policy_kwargs=dict(latent_dim=512)).policy.student
        blocks = student.split(student.encode(th.randn(5, 4))).view(dim, 5, -1)
        assert (blocks.std(1) > 0).all(), dim


@pytest.mark.parametrize(
    ("latent_dim", "dim", "block"), [(64, 1, 64), (64, 2, 32), (64, 6, 32), (16, 3, 16), (512, 3, 170)]
)
def test_small_students_are_not_too_small(latent_dim: int, dim: int, block: int) -> None:
    """A tenth of 64 features would not be enough for what a joint of a walker does."""
    env = SpaceEnv(spaces.Box(-1.0, 1.0, (4,), np.float32), spaces.Box(-1.0, 1.0, (dim,), np.float32))
    assert make_agent(FacTDMPC, env, policy_kwargs=dict(latent_dim=latent_dim)).policy.student.latent_dim == block * dim


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


@pytest.mark.parametrize(
    "groups", [[[0]], [[0, 1], [1]], [[0], [1], []], [[0, 2], [1]], [[0.0], [1.0]], [[False, True]], 3]
)
def test_wrong_groups(groups: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(FacTDMPC, PointEnv(), action_groups=groups)
    assert_one_clear_sentence(error.value, "action_groups", "use a list" if groups == 3 else "exactly once")


def test_expert_of_another_environment(expert: Any) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(FacTDMPC, THREE, expert=expert)
    assert_one_clear_sentence(error.value, "expert", "observation space", "give")


@pytest.mark.parametrize(
    "wrong",
    [
        dict(kl_direction="both"),
        dict(num_candidates=1),
        dict(distill_steps="many"),
        dict(candidate_std=[]),
        dict(candidate_std=[0.5, -1.0]),
        dict(candidate_std=["auto"]),
        dict(candidate_std=[0.5] * 5, num_candidates=4),
        dict(tau="auto"),
    ],
)
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


def test_student_plans_with_as_many_iterations_as_its_expert() -> None:
    """Otherwise its plans could cost more than the expert's; MBDPO's iterations are many small ones."""
    small = make_agent(TDMPC2, PointEnv(), iterations=3)
    assert FacTDMPC("MlpPolicy", PointEnv(), expert=small).policy.student_planner.iterations == 3
    assert FacTDMPC("MlpPolicy", PointEnv(), expert=small, iterations=4).policy.student_planner.iterations == 4
    diffusion = make_agent(MBDPO, PointEnv(), iterations=19)
    assert FacTDMPC("MlpPolicy", PointEnv(), expert=diffusion).policy.student_planner.iterations == 6


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


def test_student_sees_what_its_expert_sees(expert: Any) -> None:
    """Also when the expert has learned on; and the student's updates change neither."""
    model = make_agent(FacTDMPC, PointEnv(), seed=0, distill_batch_size=8).learn(12)
    student, teacher = model.policy.student, model.policy.world_model
    observations = th.randn(5, 3)
    before = teacher.encode(observations)
    th.testing.assert_close(student.encode(observations), before)
    model.learn(12, reset_num_timesteps=False)
    after = teacher.encode(observations)
    assert not th.allclose(before, after), "the expert has learned on"
    th.testing.assert_close(student.encode(observations), after)
    distilled = FacTDMPC.distill(expert, steps=3, distill_batch_size=8).policy.student.encoder
    assert_same_state(distilled.copy.state_dict(), expert.policy.world_model.encoder.state_dict())


@pytest.mark.parametrize("compiled", [False, True])
def test_learning_rate_falls_in_each_distillation(compiled: bool, expert: Any) -> None:
    """The last updates are small, so that the student is steady; the next distillation begins anew."""
    rates: list[float] = []

    def note(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        policy = variables["self"].policy
        found = {float(o.param_groups[0]["lr"]) for o in (policy.student_optimizer, policy.student_pi_optimizer)}
        rates.extend(found)
        return len(found) == 1

    settings: Any = dict(distill_batch_size=8, distill_learning_rate=1e-3, distill_steps=2, compile=compiled)
    model = FacTDMPC.distill(expert, steps=4, callback=ConvertCallback(note), **settings)
    np.testing.assert_allclose(rates, [1e-3, 7.5e-4, 5e-4, 2.5e-4], rtol=1e-6)
    before = model.policy.student.reward_head.layers[0].weight.clone()
    model.set_env(PointEnv())
    model.learn(5)
    changed = (model.policy.student.reward_head.layers[0].weight - before).abs().max().item()
    assert 5e-4 < changed <= 1.6e-3, "Adam moves each weight by about the rates, 1e-3 and 5e-4"


def test_student_of_a_given_expert_collects(expert: Any) -> None:
    """In the states that it gets into it can learn what the expert would do there; the expert collects before."""
    acted: list[bool] = []

    def note(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        acted.append(variables["self"].policy.distilled)
        return True

    model = FacTDMPC("MlpPolicy", PointEnv(), expert=expert, distill_batch_size=8, distill_steps=3)
    model.learn(9, ConvertCallback(note)).learn(9, ConvertCallback(note), reset_num_timesteps=False)
    assert acted == [False] * 9 + [True] * 9
    assert model.policy.distilled and model._student_updates == 6
    acted.clear()
    own = make_agent(FacTDMPC, PointEnv(), distill_batch_size=8, distill_steps=3)
    own.learn(9).learn(9, ConvertCallback(note), reset_num_timesteps=False)
    assert acted == [False] * 9, "an expert that learns on collects for itself"


def test_replay_buffer_of_another_device(expert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert.replay_buffer, "device", th.device("meta"))
    FacTDMPC.distill(expert, steps=2, distill_batch_size=8, device="cpu")
    assert expert.replay_buffer.device.type == "meta"


def test_losses_and_evaluations_of_the_student_are_logged(expert: Any, tmp_path: Path) -> None:
    """The paper's curve in one line: evaluations every so many updates, in the log and in the callback's file."""
    evaluation = EvalCallback(vec(monitored), n_eval_episodes=2, eval_freq=4, log_path=str(tmp_path), verbose=0)
    seen = []

    def note(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append((variables["self"].num_timesteps, variables["self"].policy.distilled))
        return len(seen) < 10

    model = FacTDMPC.distill(
        expert, steps=100, callback=[ConvertCallback(note), evaluation], log_interval=4, distill_batch_size=8,
        logger=configure(str(tmp_path), ["csv", "tensorboard"]),
    )  # fmt: skip
    assert seen == [(n, True) for n in range(1, 11)], "updates are the steps, and a callback can stop them"
    assert evaluation.evaluations_timesteps == [4, 8] and model.num_timesteps == 0
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["distill/loss"]) for row in rows if row["distill/loss"]]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert sum(bool(row["eval/mean_reward"]) for row in rows) == 2
    assert list(tmp_path.glob("events.out.*"))


@pytest.mark.parametrize("eval_freq", [5, 100])
def test_best_model_of_learn_is_the_student(eval_freq: int, tmp_path: Path) -> None:
    """Even if the expert was better, and if the student is not updated as often as one evaluates."""

    class Better(EvalCallback):
        def _on_step(self) -> bool:
            if not self.model.policy.distilled:
                self.best_mean_reward = 1e9
            return super()._on_step()

    paths: Any = dict(best_model_save_path=str(tmp_path), log_path=str(tmp_path))
    evaluation = Better(vec(monitored), n_eval_episodes=1, eval_freq=eval_freq, verbose=0, **paths)
    others = Count()
    model = make_agent(FacTDMPC, PointEnv(), seed=0, distill_steps=7).learn(20, [others, evaluation])
    assert others.n_calls == 20, "other callbacks, which expect transitions, see the expert alone"
    assert evaluation.evaluations_timesteps[-1] == 27 and model.num_timesteps == 20
    best = FacTDMPC.load(tmp_path / "best_model")
    assert best.policy.distilled and best.num_timesteps == 20


def monitored() -> Any:
    """An environment as evaluations want it."""
    return Monitor(PointEnv())


class Count(BaseCallback):
    """Counts its calls."""

    def _on_step(self) -> bool:
        return True


def test_expert_that_is_trained_by_hand_acts() -> None:
    """The student is of what the expert was before, and plans by its model."""
    model = make_agent(FacTDMPC, PointEnv(), distill_steps=2, distill_batch_size=8).learn(60)
    assert model._distilled
    model.train(1)
    assert not model._distilled and not model.policy.distilled


def test_learning_on_continues_the_student(tmp_path: Path) -> None:
    """One update per new step, not one per step since the beginning; a killed agent distils all that it missed."""
    model = make_agent(FacTDMPC, PointEnv(), seed=0, distill_steps="auto", distill_batch_size=8).learn(12)
    weight = model.policy.student.reward_head.layers[0].weight
    assert model._student_updates == 12
    model.learn(9, reset_num_timesteps=False)
    assert model._student_updates == 21 and model.policy.distilled
    assert model.policy.student.reward_head.layers[0].weight is weight, "the same student, not a new one"
    model.save(tmp_path / "agent")
    loaded = FacTDMPC.load(tmp_path / "agent", PointEnv()).learn(5, reset_num_timesteps=False)
    assert loaded._student_updates == 26
    loaded.distill_steps = 0
    assert not loaded.learn(5).policy.distilled, "its expert has learned on, whose policy proposes the student's plans"
    loaded.distill_steps = 2
    assert loaded.learn(5, reset_num_timesteps=False).policy.distilled


class Interrupted(BaseCallback):
    """Saves the agent when its student has had some updates, and stops everything."""

    def __init__(self, path: Path, updates: int) -> None:
        super().__init__()
        self.path, self.updates = path, updates

    def _on_step(self) -> bool:
        if self.model._student_updates == self.updates:  # type: ignore[attr-defined]
            self.model.save(self.path)
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize(("distill_steps", "interrupted_at"), [("auto", 5), ("auto", 9), (9, 5)])
def test_learn_ends_an_interrupted_distillation(distill_steps: Any, interrupted_at: int, tmp_path: Path) -> None:
    """With the rest of the updates, at the rates that they would have had; nothing is left after the last of them."""
    settings: Any = dict(seed=0, distill_batch_size=8, distill_steps=distill_steps)
    whole = make_agent(FacTDMPC, PointEnv(), **settings).learn(9)
    interruption = Interrupted(tmp_path / "agent", interrupted_at)
    evaluation = EvalCallback(vec(PointEnv), None, interruption, n_eval_episodes=1, eval_freq=1, verbose=0)
    model = make_agent(FacTDMPC, PointEnv(), **settings)
    with pytest.raises(KeyboardInterrupt):
        model.learn(9, evaluation)
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = FacTDMPC.load(tmp_path / "agent", PointEnv())
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(0, reset_num_timesteps=False)
    assert loaded._student_updates == 9 and loaded.policy.distilled
    assert_same_state(loaded.policy.student.state_dict(), whole.policy.student.state_dict())


def test_data_end_an_interrupted_distillation(expert: Any, tmp_path: Path) -> None:
    data = Dataset.from_replay_buffer(expert.replay_buffer, env=PointEnv())
    whole = FacTDMPC.distill(expert, data, steps=7, distill_batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        FacTDMPC.distill(expert, data, steps=7, distill_batch_size=8, callback=Interrupted(tmp_path / "agent", 3))
    loaded = FacTDMPC.load(tmp_path / "agent").learn_offline(data, 4, reset_num_timesteps=False)
    assert_same_state(loaded.policy.student.state_dict(), whole.policy.student.state_dict())


def test_learning_after_learning_from_data_distils_what_is_new(expert: Any) -> None:
    data = Dataset.from_replay_buffer(expert.replay_buffer, env=PointEnv())
    model = FacTDMPC("MlpPolicy", PointEnv(), expert=expert, distill_batch_size=8, distill_steps="auto")
    model.learn_offline(data, 6).learn(4, reset_num_timesteps=False)
    assert model._student_updates == 10, "six, and one for each step, not one for each of ten"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(student_net_arch=[0]), ("student_net_arch=0", "use a number")),
        (dict(student_net_arch=[2.5]), ("student_net_arch=2.5", "use a whole number")),
        (dict(action_groups=[[0, 1]]), ("policy_kwargs", "action_groups", "use action_groups")),
        (dict(student_learning_rate=0.1), ("student_learning_rate", "use distill_learning_rate")),
    ],
)
def test_wrong_sizes_of_the_student(wrong: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        make_agent(FacTDMPC, PointEnv(), policy_kwargs=wrong)
    assert_one_clear_sentence(error.value, *words)


def test_plans_of_a_saved_student_are_changed_in_policy_kwargs(expert: Any, tmp_path: Path) -> None:
    FacTDMPC.distill(expert, steps=2, distill_batch_size=8).save(tmp_path / "agent")
    plans = dict(max_std=0.1, policy_start=1.0)
    for file in (tmp_path / "agent", io.BytesIO((tmp_path / "agent.zip").read_bytes())):
        planner = FacTDMPC.load(file, policy_kwargs=dict(student_planner_kwargs=plans)).policy.student_planner
        assert (planner.max_std, planner.policy_start) == (0.1, 1.0)
    with_both = FacTDMPC.load(tmp_path / "agent", policy_kwargs=dict(student_planner_kwargs=dict(max_std=0.2)))
    with_both.save(tmp_path / "changed")
    loaded = FacTDMPC.load(tmp_path / "changed", policy_kwargs=dict(student_planner_kwargs=dict(policy_start=0.7)))
    assert (loaded.policy.student_planner.max_std, loaded.policy.student_planner.policy_start) == (0.2, 0.7)
    for name in plans.keys() - {"policy_start"} | {"num_pi_trajs"}:  # of the expert's plans, which are over
        with pytest.raises(ValueError) as error:
            FacTDMPC.load(tmp_path / "agent", **{name: 1})
        assert_one_clear_sentence(error.value, name, "use policy_kwargs")
    for kwargs, words in ((dict(latent_dim=8), ("policy_kwargs", "leave out")), (dict(latent=8), ("latent_dim",))):
        with pytest.raises((ValueError, TypeError)) as error:
            FacTDMPC.load(tmp_path / "agent", policy_kwargs=kwargs)
        assert_one_clear_sentence(error.value, *words)


def test_a_setting_that_is_changed_on_a_student_has_no_effect_and_says_so(expert: Any) -> None:
    model = FacTDMPC("MlpPolicy", PointEnv(), expert=expert, distill_batch_size=8, distill_steps=2)
    model.num_samples = 32
    with pytest.warns(UserWarning, match="num_samples was changed to 32 on the agent, but its planner keeps 16"):
        model.learn(9)


def test_what_cannot_be_distilled(expert: Any, tmp_path: Path) -> None:
    expert.save(tmp_path / "expert")
    alone = TDMPC2.load(tmp_path / "expert")
    evaluation = EvalCallback(Monitor(PointEnv()), verbose=0)
    buffer = expert.replay_buffer
    for wrong, words in (
        (("agent.zip", buffer), ("expert='agent.zip'", "load it first")),
        ((SAC("MlpPolicy", PointEnv()), buffer), ("SAC", "load it first")),
        ((expert, buffer, 2.5), ("steps=2.5", "use a whole number")),
        ((expert, tmp_path), ("is a folder", "Dataset.load")),
        ((alone,), ("empty", "Dataset")),
        ((alone, buffer, 2, evaluation), ("environment", "env=env")),
    ):
        with pytest.raises(ValueError) as error:
            FacTDMPC.distill(*wrong)
        assert_one_clear_sentence(error.value, *words)


def test_students_may_be_linear() -> None:
    model = make_agent(FacTDMPC, PointEnv(), policy_kwargs=dict(net_arch=[], student_net_arch=[])).learn(12)
    assert model.policy.student.hidden == [] and model.policy.student_planner.width > 0


def test_episodes_that_no_segment_of_the_distillation_fits_into() -> None:
    rule = dict(sampling="episodes")
    model = make_agent(FacTDMPC, PointEnv(length=3), horizon=3, replay_buffer_kwargs=rule)
    with pytest.warns(UserWarning, match="Nothing is distilled yet.*No episode of 4 transitions"):
        model.learn(12)


def test_before_the_buffer_can_be_sampled() -> None:
    model = make_agent(FacTDMPC, PointEnv(), seed=0)
    with pytest.warns(UserWarning, match="Nothing is distilled yet, the expert continues to act.*empty"):
        model.learn(0)
    assert not model.policy.distilled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.learn(12, reset_num_timesteps=False).policy.distilled


def test_critic_is_that_of_the_agent_that_acts(expert: Any) -> None:
    model = FacTDMPC.distill(expert, steps=30, distill_batch_size=8, distill_learning_rate=1e-2)
    student = model.policy.student
    observations, actions = th.randn(5, 3), th.rand(5, 2) * 2 - 1
    values = model.critic(observations, actions)
    blocks = student.encoder.head(student.encode(observations)).view(5, 2, -1)
    for value, head in zip(values, student.q_heads, strict=True):
        parts = [head(th.cat([blocks[:, g], actions[:, g : g + 1]], -1).expand(2, -1, -1))[g] for g in range(2)]
        th.testing.assert_close(value, parts[0] + parts[1])
    assert len(values) == 2 and values[0].std() > 1e-3
    th.testing.assert_close(model.policy.critic_target(observations, actions), values)
    model.policy.use_student(False)
    th.testing.assert_close(model.critic(observations, actions), expert.critic(observations, actions))


def test_the_learning_rate_of_a_given_expert_is_no_matter(expert: Any) -> None:
    """It does not learn, so that nothing is said of a rate that has fallen."""
    settings: Any = dict(learning_rate=LinearSchedule(1e-3, 0.0, 1.0), distill_batch_size=8, distill_steps=1)
    model = FacTDMPC("MlpPolicy", PointEnv(), expert=expert, **settings).learn(40)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The learning rate begins")
        model.learn(2, reset_num_timesteps=False)


def test_candidates_have_several_deviations_in_turn(expert: Any) -> None:
    drawn = []
    for deviation in (1.0, [0.5, 2.0]):
        model = FacTDMPC.distill(expert, steps=0, candidate_std=deviation, num_candidates=5)
        drawn.append(model.draw_distill_noise(8, th.Generator().manual_seed(0)).candidates)
    factors = th.tensor([0.5, 2.0, 0.5, 2.0, 0.5]).reshape(5, 1)
    th.testing.assert_close(drawn[1], factors * drawn[0])


def test_policy_prior_does_not_slow_the_model_down(expert: Any) -> None:
    """Its gradient is clipped by itself."""
    results = []
    for shift in (0, 1):
        model = FacTDMPC.distill(
            expert, steps=0, policy_kwargs=dict(optimizer_class=th.optim.SGD), distill_max_grad_norm=1e-2
        )
        fill(model.policy.student)
        noise = model.draw_distill_noise(8, th.Generator().manual_seed(0))
        model.replay_buffer.seed(0)
        model.replay_buffer.horizon = model.horizon + 1
        batch = model.replay_buffer.sample(8)
        model.replay_buffer.horizon = model.horizon
        with th.no_grad():  # far from what the expert does
            model.policy.student.prior_net.layers[-1].bias.add_(shift)
        logs = model.distill_update(batch, noise)
        assert logs["pi_grad_norm"] > 0
        results.append([p for n, p in model.policy.student.named_parameters() if not n.startswith("prior_net")])
    for one, other in zip(*results, strict=True):
        th.testing.assert_close(one, other, rtol=0, atol=0)


def test_plans_of_the_student_have_settings_of_their_own(expert: Any) -> None:
    """They begin near the expert's policy; ``student_planner_kwargs`` changes them, and not those of the expert."""
    model = FacTDMPC.distill(expert, steps=0, num_samples=10, num_elites=4)
    planner = model.policy.student_planner
    assert (planner.max_std, planner.num_pi_trajs, planner.policy_start) == (0.3, 5, 0.5)
    assert model.policy.planner.max_std == 2.0 and model.policy.planner.num_pi_trajs == expert.num_pi_trajs
    own: Any = dict(max_std=1.0, num_pi_trajs=0, kept_elites=0.5)
    planner = FacTDMPC.distill(
        expert, steps=0, num_samples=10, num_elites=4, policy_kwargs=dict(student_planner_kwargs=own)
    ).policy.student_planner
    assert (planner.max_std, planner.num_pi_trajs, planner.policy_start, planner.num_kept) == (1.0, 0, 0.0, 2)
    assert FacTDMPC.distill(expert, steps=0, min_std=0.6).policy.student_planner.max_std == 0.6
    assert FacTDMPC.distill(expert, steps=0, num_samples=2, num_elites=2).predict(np.zeros(3))
    planner = FacTDMPC.distill(expert, steps=0, max_std=0.7, num_pi_trajs=2).policy.student_planner
    assert (planner.max_std, planner.num_pi_trajs) == (0.7, 2), "a given expert plans as it did"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pessimistic", True),
        ("maxstd", 0.3),
        ("world_model", 1),
        ("num_pi_trajs", None),
        ("num_pi_trajs", "4"),
        ("horizon", 2.5),
        ("max_std", 0.01),
        ("num_pi_trajs", 10_000),
        ("policy_start", 2),
    ],
)
def test_wrong_settings_of_the_students_plans(name: str, value: Any, expert: Any) -> None:
    with pytest.raises(ValueError) as caught:
        FacTDMPC.distill(expert, steps=0, policy_kwargs=dict(student_planner_kwargs={name: value}))
    assert_one_clear_sentence(caught.value, name)


def test_a_distilled_expert_is_an_expert(expert: Any) -> None:
    """The settings of its student's plans are not those of the next one's."""
    first = FacTDMPC.distill(expert, steps=1, distill_batch_size=8, num_samples=10, num_elites=4)
    planner = FacTDMPC.distill(first, steps=0, num_samples=12, iterations=1, gamma=0.9).policy.student_planner
    assert (planner.num_samples, planner.num_pi_trajs, planner.iterations, planner.gamma) == (12, 6, 1, 0.9)


def test_the_experts_policy_proposes_plans(three: Any) -> None:
    """By rollouts in the expert's model; where all other sequences are worse, the plan is what it proposes."""
    planner, model, expert = three.policy.student_planner, three.policy.student, three.policy.world_model
    z = model.encode(th.randn(2, 4))
    noise = planner.draw(1, th.Generator().manual_seed(0), explore=False)  # shared by both environments
    assert noise.proposals.shape == (planner.horizon, 2, planner.num_pi_trajs, 2)
    draws = noise.proposals.repeat_interleave(2, dim=1)
    proposals = planner.propose(z, draws)
    for row, state in enumerate(z):
        joint = th.stack([model.groups.join(part)[row] for part in draws])  # [H + 1, P, A]
        for number in range(planner.num_pi_trajs):
            following = state.unsqueeze(0)
            for step, eps in enumerate(joint[:, number]):
                action = expert.act(following, eps.unsqueeze(0))
                th.testing.assert_close(model.groups.join(proposals[step])[row, number], action[0])
                following = expert.next(following, action)
    planner.evaluate = lambda z, actions, *_: -1e3 * (actions - proposals[:, :, :1]).abs().sum((0, 3))
    try:
        plan = planner.plan(z, th.zeros(2, planner.horizon, 3), noise)
    finally:
        del planner.evaluate
    wanted = model.groups.join(proposals[:, :, 0].movedim(0, 1)[:, 0])
    th.testing.assert_close(plan.action, wanted, rtol=0, atol=0.2)


def test_student_answers_batches_of_no_observations(expert: Any) -> None:
    model = FacTDMPC.distill(expert, steps=1, distill_batch_size=8)
    for use_planner in (True, False):
        actions, _ = model.predict(np.zeros((0, 3), np.float32), use_planner=use_planner)
        assert actions.shape == (0, *model.action_space.shape)


def test_nan_of_the_expert_is_named_when_its_student_acts(expert: Any) -> None:
    """The expert's policy proposes the student's plans."""
    model = FacTDMPC.distill(expert, steps=1, distill_batch_size=8)
    with th.no_grad():
        next(model.policy.world_model.prior_net.parameters()).fill_(th.nan)
    with pytest.raises(ValueError, match=r"parameters of prior_net are NaN"):
        model.predict(np.zeros(3, dtype=np.float32))
