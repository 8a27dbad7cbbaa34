"""
What model-predictive path integral control does, on problems whose best plan is known.

A stand-in for the world model says what an action is worth: no network is involved, and every optimum can be written
down. Latent states are points, actions move them.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch as th

from sb3_mpc.common.planning.plan import Plan, PlanNoise
from sb3_mpc.common.planning.planner import MPPIPlanner

Function = Callable[..., th.Tensor]


def nothing(z: th.Tensor, *_: Any) -> th.Tensor:
    """:return: zero for each latent state ``[..., 1]``"""
    return 0.0 * z[..., :1]


class Problem:
    """
    A world model in closed form: an action moves the latent state by itself.

    :param action_dim: number A of action dimensions
    :param reward: reward of states and actions ``[..., 1]``, none by default
    :param value: value of the state that a plan ends in ``[..., 1]``, none by default
    :param prior: action ``[..., A]`` that the policy prior proposes for states and normal draws
    :param ends: positive where a state ends the episode ``[..., 1]``; None for episodes that never do
    """

    num_q, latent_dim = 2, 1
    hidden: list[int] = []
    two_hot = SimpleNamespace(decode=lambda x: x)

    def __init__(
        self,
        action_dim: int = 1,
        reward: Function = nothing,
        value: Function = nothing,
        prior: Function | None = None,
        ends: Function | None = None,
    ) -> None:
        self.action_dim, self.reward, self.termination_head = action_dim, reward, ends
        self.state_value, self.prior = value, prior

    def next(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        return z + action

    def value(self, z: th.Tensor, action: th.Tensor, members: th.Tensor) -> th.Tensor:
        """Both members of the pair agree, but for their numbers divided by a thousand."""
        return self.state_value(z) + members.view(-1, *[1] * z.dim()) / 1_000

    def act(self, z: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return 0.0 * noise if self.prior is None else self.prior(z, noise)

    def continues(self, z: th.Tensor) -> th.Tensor:
        assert self.termination_head is not None
        return (self.termination_head(z) <= 0).float()

    def mask_actions(self, z: th.Tensor, x: th.Tensor) -> th.Tensor:
        return x

    def discount(self, z: th.Tensor, gamma: float) -> float:
        return gamma


def make_planner(problem: Problem, **settings: Any) -> MPPIPlanner:
    """:return: planner of the paper's size, without proposals of the prior and discounting unless asked for"""
    return MPPIPlanner(problem, **{**dict(num_pi_trajs=0, gamma=1.0), **settings})  # type: ignore[arg-type]


def make_plan(
    planner: MPPIPlanner, z: th.Tensor, prev_mean: th.Tensor | None = None, explore: bool = False, seed: int = 0
) -> Plan:
    """:return: plan from latent states ``[E, D]``, at the start of an episode by default"""
    cold = th.zeros(len(z), planner.horizon, planner.action_dim)
    noise = planner.draw(len(z), th.Generator().manual_seed(seed), explore)
    return planner.plan(z, cold if prev_mean is None else prev_mean, noise)


def near(target: Any, width: float = 1.0) -> Function:
    """:return: reward of actions that is highest, zero, at a target, and falls with the square of the distance"""
    return lambda z, action: -((action - th.as_tensor(target)) / width).square().sum(-1, keepdim=True)


# --- What a plan finds ------------------------------------------------------------------------------------------------


def test_the_plan_is_at_the_maximum_of_a_quadratic() -> None:
    plan = make_plan(make_planner(Problem(2, reward=near([0.3, -0.6])), horizon=1), th.zeros(1, 2))
    th.testing.assert_close(plan.action, th.tensor([[0.3, -0.6]]), atol=0.02, rtol=0)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_the_plan_solves_a_linear_quadratic_problem(gamma: float) -> None:
    """
    Effort is paid at every step, the distance from the origin at the end: with X the final position, the best effort
    at step t is ``-gamma^(H - t) X``, and ``X = x / (1 + sum_t gamma^(H - t))``.
    """
    problem = Problem(reward=near(0.0), value=lambda z: -z.square())
    plan = make_plan(make_planner(problem, horizon=3, gamma=gamma), th.tensor([[1.0]]))
    weights = gamma ** th.tensor([3.0, 2.0, 1.0])
    best = -weights / (1 + weights.sum())
    th.testing.assert_close(plan.mean[0, :, 0], best, atol=0.03, rtol=0)
    th.testing.assert_close(plan.action, plan.mean[:, 0])


def test_the_plan_commits_to_the_better_of_two_optima() -> None:
    """Their mean is worth nothing."""

    def reward(z: th.Tensor, action: th.Tensor) -> th.Tensor:
        return near(0.6, 0.2)(z, action).exp() + 0.8 * near(-0.6, 0.2)(z, action).exp()

    planner = make_planner(Problem(reward=reward), horizon=1, temperature=10.0)
    for seed in range(5):
        plan = make_plan(planner, th.zeros(1, 1), seed=seed)
        assert plan.action.item() == pytest.approx(0.6, abs=0.03)
        assert plan.elite_value.item() > 0.95


def test_a_bound_that_binds_is_reached_and_never_left() -> None:
    planner = make_planner(Problem(2, reward=near([1.7, -5.0])), horizon=2)
    plan = make_plan(planner, th.zeros(1, 2))
    th.testing.assert_close(plan.mean, th.tensor([[[1.0, -1.0]] * 2]), atol=0.01, rtol=0)
    assert (plan.std == planner.min_std).all()
    explored = make_plan(planner, th.zeros(100, 2), explore=True).action
    assert explored.abs().max() <= 1 and explored.std(0).min() > 0  # the noise of exploration is cut off


def test_a_plan_keeps_away_from_a_termination_that_costs_it_the_future() -> None:
    """Every step earns 1 and its action, but beyond 0.5 the episode ends: the plan goes there with its last step."""

    def reward(z: th.Tensor, action: th.Tensor) -> th.Tensor:
        return 1.0 + action

    free = make_plan(make_planner(Problem(reward=reward), horizon=3), th.zeros(1, 1))
    th.testing.assert_close(free.mean, th.ones(1, 3, 1), atol=0.03, rtol=0)
    walled = make_plan(make_planner(Problem(reward=reward, ends=lambda z: z - 0.5), horizon=3), th.zeros(1, 1))
    first, second, last = walled.mean.flatten().tolist()
    assert 0.3 < first + second <= 0.5 and first <= 0.5 and last == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("proposed", [0, 1])
def test_the_prior_may_know_what_samples_do_not_find(proposed: int) -> None:
    """A needle in ten dimensions: one proposal that is right in every iteration is enough."""
    needle = th.linspace(-0.9, 0.9, 10)

    def reward(z: th.Tensor, action: th.Tensor) -> th.Tensor:
        return 100.0 * near(needle, 0.05)(z, action).exp()

    problem = Problem(10, reward=reward, prior=lambda z, noise: needle.expand_as(noise))
    plan = make_plan(make_planner(problem, horizon=1, num_pi_trajs=proposed), th.zeros(1, 10))
    assert (th.dist(plan.action[0], needle) < 0.01) == bool(proposed)
    assert (plan.elite_value.item() > 99) == bool(proposed)


def test_more_iterations_come_closer() -> None:
    target, z = th.tensor([0.5, -0.5, 0.25, 0.0]), th.zeros(32, 4)
    errors = []
    for iterations in (1, 2, 4, 8):
        planner = make_planner(Problem(4, reward=near(target)), horizon=1, iterations=iterations, num_samples=128)
        errors.append((make_plan(planner, z).action - target).norm(dim=1).mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1 * errors[0]


def test_environments_are_planned_for_side_by_side() -> None:
    """Each has its own optimum, here its state, and gives the plan that it gives alone from the same noise."""
    problem = Problem(reward=lambda z, action: -(action - z).square())
    planner, z = make_planner(problem, horizon=1), th.tensor([[-0.8], [0.0], [0.4]])
    noise = planner.draw(3, th.Generator().manual_seed(0), explore=True)
    together = planner.plan(z, th.zeros(3, 1, 1), noise)
    th.testing.assert_close(together.mean[:, 0], z, atol=0.02, rtol=0)
    assert noise.selection is not None and noise.exploration is not None
    for i in range(3):
        own = slice(i, i + 1)
        alone = PlanNoise(
            noise.proposals[:, own],
            noise.samples[:, :, own],
            noise.terminal[:, own],
            noise.members,
            noise.selection[own],
            noise.exploration[own],
        )
        th.testing.assert_close(planner.plan(z[own], th.zeros(1, 1, 1), alone).action, together.action[own])


def test_twenty_action_dimensions_get_two_more_iterations() -> None:
    assert [make_planner(Problem(dim), iterations=6).iterations for dim in (1, 19, 20, 38)] == [6, 6, 8, 8]


# --- Where a plan starts ----------------------------------------------------------------------------------------------


def test_a_warm_start_is_the_previous_plan_one_step_later() -> None:
    """Without noise the samples are the mean that the plan starts from: the last step, not planned before, is zero."""
    planner = make_planner(Problem(), horizon=3)
    noise = planner.draw(1, th.Generator(), explore=False)
    quiet = noise._replace(samples=th.zeros_like(noise.samples))
    plan = planner.plan(th.zeros(1, 1), th.tensor([[[0.1], [0.2], [0.3]]]), quiet)
    th.testing.assert_close(plan.mean, th.tensor([[[0.2], [0.3], [0.0]]]))


def test_a_good_warm_start_is_closer_after_one_iteration() -> None:
    """Four steps of two dimensions: a narrow distribution around the optimum is better than a wide one around zero."""
    target = th.tensor([0.5, -0.5])
    planner = make_planner(Problem(2, reward=near(target)), horizon=4, iterations=1, max_std=0.5)
    z, solution = th.zeros(16, 2), target.expand(16, 4, 2)
    errors = [(make_plan(planner, z, prev).action - target).norm(dim=1).mean() for prev in (None, solution)]
    assert errors[1] < 0.5 * errors[0]


def test_proposals_follow_the_prior_through_the_model() -> None:
    """A prior that halves the distance, from the state that its own action has led to."""
    planner = make_planner(Problem(prior=lambda z, noise: -z / 2), horizon=3, num_pi_trajs=2)
    proposals = planner.propose(th.tensor([[1.0], [0.4]]), th.zeros(3, 2, 2, 1))
    steps = th.tensor([-0.5, -0.25, -0.125]).view(3, 1, 1, 1)
    th.testing.assert_close(proposals, steps * th.tensor([1.0, 0.4]).view(1, 2, 1, 1).expand(3, 2, 2, 1))


def test_candidates_are_the_proposals_and_draws_around_the_mean_within_the_bounds() -> None:
    planner = make_planner(Problem(), horizon=1)
    mean, std, noise = th.full((1, 1, 1), 0.5), th.full((1, 1, 1), 0.2), th.tensor([1.0, -2.0, 9.0]).view(1, 1, 3, 1)
    candidates = planner.sample(mean, std, th.full((1, 1, 1, 1), -0.3), noise)
    th.testing.assert_close(candidates.flatten(), th.tensor([-0.3, 0.7, 0.1, 1.0]))


# --- What a sequence is worth -----------------------------------------------------------------------------------------


def test_a_return_is_discounted_rewards_and_the_mean_value_of_two_members() -> None:
    problem = Problem(reward=lambda z, action: 10 * z + action, value=lambda z: 100 * z)
    planner = make_planner(problem, horizon=2, gamma=0.5)
    actions = th.tensor([[0.5, -0.5], [1.0, 0.25]]).view(2, 1, 2, 1)  # two sequences, from the state 1
    returns = planner.evaluate(th.ones(1, 1), actions, th.zeros(1, 2, 1), th.tensor([1, 4]))
    first = (10 + 0.5) + 0.5 * (15 + 1.0) + 0.25 * (250 + 0.0025)
    second = (10 - 0.5) + 0.5 * (5 + 0.25) + 0.25 * (75 + 0.0025)
    th.testing.assert_close(returns, th.tensor([[first, second]]))


@pytest.mark.parametrize(("last", "expected"), [(1, 1.0), (2, 1.5), (3, 1.75), (None, 1.75 + 0.125 * 8)])
def test_nothing_is_earned_after_the_step_that_ends_the_episode(last: int | None, expected: float) -> None:
    """A reward of one a step and a value of eight; each action goes one step towards the state that ends it all."""
    end = th.tensor(99.0 if last is None else float(last))
    problem = Problem(
        reward=lambda z, a: 1 + nothing(z), value=lambda z: 8 + nothing(z), ends=lambda z: 1 - 9 * (z - end).abs()
    )
    planner = make_planner(problem, horizon=3, gamma=0.5)
    returns = planner.evaluate(th.zeros(1, 1), th.ones(3, 1, 1, 1), th.zeros(1, 1, 1), th.tensor([0, 0]))
    assert returns.item() == pytest.approx(expected)


def test_a_return_that_is_not_a_number_shows_in_the_plan() -> None:
    """One of the candidates is enough, so that the policy can refuse the action; it does not count as some number."""
    planner = make_planner(Problem(reward=lambda z, action: action.sqrt()), horizon=1)
    actions = th.tensor([-1.0, 0.25]).view(1, 1, 2, 1)
    values = planner.evaluate(th.zeros(1, 1), actions, th.zeros(1, 2, 1), th.tensor([0, 0]))
    assert values.isnan().tolist() == [[True, False]]
    planner = make_planner(Problem(reward=lambda z, action: action.sqrt()), horizon=2)
    for explore in (True, False):
        plan = planner.plan(th.zeros(1, 1), th.zeros(1, 2, 1), planner.draw(1, th.Generator().manual_seed(0), explore))
        assert plan.elite_value.isnan().all() and plan.action.isnan().all()


# --- What is made of the elites ---------------------------------------------------------------------------------------


def test_elites_are_weighed_by_their_returns() -> None:
    """Three of four candidates, by hand: weights are ``exp(temperature (return - best))``, normalised."""
    planner = make_planner(Problem(), horizon=1, num_samples=4, num_elites=3, temperature=2.0, min_std=0.01)
    actions, values = th.tensor([0.8, -0.2, 0.4, 0.9]).view(1, 1, 4, 1), th.tensor([[1.0, 1.5, -9.0, 0.5]])
    mean, std, weights, elites = planner.refit(actions, values)
    expected = th.tensor([0.0, -1.0, -2.0]).exp() / th.tensor([0.0, -1.0, -2.0]).exp().sum()
    chosen = th.tensor([-0.2, 0.8, 0.9])
    assert elites.tolist() == [[1, 0, 3]]
    th.testing.assert_close(weights[0], expected)
    th.testing.assert_close(mean.squeeze(), (expected * chosen).sum())
    spread = (expected * (chosen - (expected * chosen).sum()).square()).sum().sqrt()
    th.testing.assert_close(std.squeeze(), spread)


@pytest.mark.parametrize(("temperature", "mean"), [(0.0, 0.3), (1_000.0, 0.8)])
def test_the_temperature_goes_from_the_plain_mean_to_the_best_elite(temperature: float, mean: float) -> None:
    planner = make_planner(Problem(), horizon=1, num_samples=3, num_elites=2, temperature=temperature)
    actions = th.tensor([0.8, -0.2, 0.4]).view(1, 1, 3, 1)
    assert planner.refit(actions, th.tensor([[2.0, 1.0, 0.0]]))[0].item() == pytest.approx(mean, abs=1e-6)


def test_the_standard_deviation_keeps_its_bounds() -> None:
    planner = make_planner(Problem(), horizon=1, num_samples=2, num_elites=2, min_std=0.1, max_std=0.6)
    for actions, expected in (([0.3, 0.3], 0.1), ([0.3, 0.7], 0.2), ([-1.0, 1.0], 0.6)):
        std = planner.refit(th.tensor(actions).view(1, 1, 2, 1), th.zeros(1, 2))[1]
        assert std.item() == pytest.approx(expected)


def test_training_draws_an_elite_by_its_weight_and_adds_noise() -> None:
    """Two candidates, one worth log 3 more at temperature one: it is drawn three times as often."""
    problem = Problem(reward=lambda z, action: (action > 0) * th.tensor(3.0).log(), prior=lambda z, noise: noise)
    planner = make_planner(
        problem, horizon=1, iterations=1, num_samples=2, num_elites=2, num_pi_trajs=2, temperature=1.0
    )
    noise = planner.draw(4_000, th.Generator().manual_seed(0), explore=True)
    noise = noise._replace(proposals=th.tensor([-0.4, 0.4]).view(1, 1, 2, 1).expand(1, 4_000, 2, 1))
    plan = planner.plan(th.zeros(4_000, 1), th.zeros(4_000, 1, 1), noise)
    th.testing.assert_close(plan.elite_action.unique(), th.tensor([-0.4, 0.4]))
    assert (plan.elite_action > 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    th.testing.assert_close(plan.mean, th.full_like(plan.mean, 0.2))  # which is none of the two
    assert noise.exploration is not None
    th.testing.assert_close(plan.action, (plan.elite_action + plan.std[:, 0] * noise.exploration).clamp(-1, 1))
    calm = planner.plan(th.zeros(4_000, 1), th.zeros(4_000, 1, 1), noise._replace(selection=None, exploration=None))
    th.testing.assert_close(calm.action, calm.mean[:, 0])
