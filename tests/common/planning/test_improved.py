"""What the improvements of later papers change in a plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_mpc import BMPC, TDMPC2
from sb3_mpc.agents import load_agent, save_agent
from sb3_mpc.bmpc.planner import StateValuePlanner
from sb3_mpc.common.planning.improved import ImprovedPlanner
from sb3_mpc.common.planning.planner import MPPIPlanner
from tests.common.planning.test_planner import Problem, make_plan, near
from tests.support.agents import make_agent, observations_of, two_envs

ALL = dict(pessimistic=True, average_depths=True, noise_correlation=0.5, kept_elites=0.5, policy_start=0.5)


def make_planner(problem: Problem, **settings: Any) -> ImprovedPlanner:
    """:return: planner with two proposals of the prior"""
    return ImprovedPlanner(problem, **{**dict(num_samples=64, num_elites=8, num_pi_trajs=2, gamma=0.9), **settings})  # type: ignore[arg-type]


def policy(method: type, **improvements: Any) -> Any:
    """:return: planner of an agent with these improvements"""
    kwargs = dict(planner_class=ImprovedPlanner, planner_kwargs=improvements)
    return make_agent(method, two_envs(), policy_kwargs=kwargs, episodic=True).policy.planner


@pytest.mark.parametrize("explore", [False, True])
def test_without_improvements_it_is_mppi(explore: bool) -> None:
    problem = Problem(2, near([0.3, -0.6]), value=lambda z: -z[..., :1].abs(), prior=lambda z, eps: 0.1 * eps)
    z = th.linspace(-1, 1, 3).unsqueeze(1)
    improved = make_planner(problem)
    plain = MPPIPlanner(problem, num_samples=64, num_elites=8, num_pi_trajs=2, gamma=0.9)  # type: ignore[arg-type]
    for mine, expected in zip(
        make_plan(improved, z, explore=explore), make_plan(plain, z, explore=explore), strict=True
    ):
        assert th.equal(mine, expected)


def test_averaged_depths_against_a_slow_loop() -> None:
    """Of a model with networks and predicted terminations."""
    planner = policy(TDMPC2, average_depths=True, pessimistic=True)
    model, horizon = planner.world_model, planner.horizon
    generator = th.Generator().manual_seed(0)
    with th.no_grad():  # heads start with zeros
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
        z = model.encode(th.randn(2, *planner_observation(), generator=generator))
        actions = th.rand(horizon, 2, 50, model.action_dim, generator=generator) * 2 - 1
        after = model.next(z.unsqueeze(1).expand(-1, 50, -1), actions[0])
        model.termination_head[-1].bias -= model.termination(after).median()  # half of the first states end
    noise = th.randn(2, 50, model.action_dim, generator=generator)
    returns = planner.evaluate(z, actions, noise, th.tensor([0, 1]))
    decode = model.two_hot.decode
    state = z.unsqueeze(1).expand(-1, 50, -1)
    alive, total, estimates, ends = th.ones(2, 50, 1), th.zeros(2, 50, 1), [], 0
    for t, action in enumerate(actions):
        total = total + planner.gamma**t * alive * decode(model.reward(state, action))
        state = model.next(state, action)
        alive = alive * (model.termination(state) <= 0)
        ends += int((alive == 0).sum())
        value = decode(model.value(state, model.act(state, noise))).amin(0)  # all networks
        estimates.append(total + planner.gamma ** (t + 1) * alive * value)
    assert 50 <= ends < horizon * 100
    assert returns.std() > 0.1
    th.testing.assert_close(returns, th.stack(estimates).mean(0).squeeze(-1))


def planner_observation() -> tuple[int, ...]:
    """:return: shape of the observations of the agents of these tests"""
    return two_envs().observation_space.shape  # type: ignore[return-value]


def test_the_minimum_of_the_values_decides() -> None:
    """Two networks agree on the left and contradict each other on the right, where their mean is higher."""

    class Two(Problem):
        def value(self, z: th.Tensor, action: th.Tensor, members: th.Tensor | None) -> th.Tensor:
            wild = th.where(z > 0, 4.0, 0.0)
            return th.stack([1 + wild - z.abs(), 1 - wild - z.abs() + th.where(z > 0, 2.0, 0.0)])

    goes_to = {
        pessimistic: make_plan(make_planner(Two(), horizon=1, pessimistic=pessimistic), th.zeros(1, 1)).action.item()
        for pessimistic in (False, True)
    }
    assert goes_to[False] > 0 > goes_to[True]


def test_best_elites_are_kept() -> None:
    """Without them, an iteration can have no sequence as good as the best of the one before."""
    problem = Problem(4, near([0.9, -0.9, 0.5, 0.1], width=0.1))
    best: dict[float, list[float]] = {}
    for part in (0.0, 0.25):
        planner = make_planner(problem, kept_elites=part, iterations=12, num_pi_trajs=0, min_std=0.3)
        seen: list[float] = []
        refit = planner.refit

        def watch(actions: th.Tensor, values: th.Tensor) -> Any:
            assert len(values[0]) == actions.shape[2] == (64 if part == 0 or not seen else 66)  # noqa: B023
            seen.append(values.max().item())  # noqa: B023
            return refit(actions, values)  # noqa: B023

        planner.refit = watch  # type: ignore[method-assign]
        make_plan(planner, th.zeros(1, 1))
        best[part] = seen
    assert best[0.25] == sorted(best[0.25]) and best[0.0] != sorted(best[0.0])


def test_noise_of_successive_actions_is_correlated() -> None:
    planner = make_planner(Problem(1), horizon=4, noise_correlation=0.7)
    noise = th.randn(4, 1, 20_000, 1, generator=th.Generator().manual_seed(0))
    mean, std = th.zeros(4, 1, 1), th.full((4, 1, 1), 0.1)
    samples = planner.sample(mean, std, None, noise).view(4, -1)
    expected = 0.7 ** (th.arange(4).view(-1, 1) - th.arange(4)).abs()
    th.testing.assert_close(th.corrcoef(samples), expected, atol=0.02, rtol=0)
    th.testing.assert_close(samples.std(1), th.full((4,), 0.1), atol=0.002, rtol=0)


def test_first_iteration_starts_from_the_policy() -> None:
    prior = lambda z, noise: (0.5 + 0.2 * noise).clamp(-1, 1)  # noqa: E731
    proposals = (0.5 + 0.2 * th.randn(3, 1, 5_000, 1, generator=th.Generator().manual_seed(0))).clamp(-1, 1)
    previous = th.full((1, 3, 1), -0.5)
    for part, mean, std in ((0.0, [-0.5, -0.5, 0.0], 2.0), (1.0, [0.5] * 3, 0.2), (0.5, [0.0, 0.0, 0.25], 1.1)):
        planner = make_planner(Problem(1, prior=prior), policy_start=part)
        start, spread = planner.start(previous, proposals)
        th.testing.assert_close(start.flatten(), th.tensor(mean), atol=0.02, rtol=0)
        th.testing.assert_close(spread, th.full_like(spread, std), atol=0.02, rtol=0)


def test_agent_with_all_improvements_learns_and_is_saved(tmp_path: Path) -> None:
    kwargs = dict(planner_class=ImprovedPlanner, planner_kwargs=ALL, num_q=3)
    model = make_agent(TDMPC2, two_envs(), policy_kwargs=kwargs, episodic=True).learn(40)
    assert model.policy.planner.num_samples == model.num_samples  # the agent's own arguments stay
    save_agent(model, tmp_path / "agent")
    again = load_agent(tmp_path / "agent.safetensors")
    assert again.policy.planner.num_kept == model.policy.planner.num_kept > 0 and again.policy.planner.pessimistic
    observations = observations_of(model, 5)
    expected = model.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], expected)


def test_improvements_of_state_values() -> None:
    """BMPC values states: a class of two lines has its terminal values and the improvements."""

    class Both(ImprovedPlanner, StateValuePlanner):
        pass

    kwargs = dict(planner_class=Both, planner_kwargs=ALL)
    model = make_agent(BMPC, two_envs(), policy_kwargs=kwargs).learn(40)
    assert np.isfinite(model.predict(observations_of(model, 5), deterministic=True)[0]).all()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (dict(noise_correlation=1.0), "noise_correlation=1.0"),
        (dict(kept_elites=1.5), "kept_elites=1.5"),
        (dict(policy_start=-1), "policy_start=-1"),
        (dict(policy_start=0.5, num_pi_trajs=0), "num_pi_trajs >= 2"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make_planner(Problem(), **wrong)


def test_planner_by_its_name(tmp_path: Path) -> None:
    """As presets and command lines give it."""
    kwargs = dict(planner_class="ImprovedPlanner", planner_kwargs=dict(kept_elites=0.5))
    model = make_agent(TDMPC2, two_envs(), policy_kwargs=kwargs)
    assert type(model.policy.planner) is ImprovedPlanner and model.policy.planner.num_kept > 0
    for loaded in (
        TDMPC2.load(model.save(tmp_path / "model") or tmp_path / "model"),
        load_agent(save_agent(model, tmp_path / "agent")),
    ):
        assert type(loaded.policy.planner) is ImprovedPlanner and loaded.policy.planner.num_kept > 0
    with pytest.raises(ValueError, match='There is no planner "Improved": use MPPIPlanner, ImprovedPlanner'):
        make_agent(TDMPC2, two_envs(), policy_kwargs=dict(planner_class="Improved"))
