"""Whole agents with recorded plans and updates, on a stand-in for the GPU that freezes what a CUDA graph freezes."""

import copy
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_mpc import BMPC, MBDPO, TDMPC2, FacTDMPC, TDMPCSquare
from sb3_mpc.common import algorithm as common
from sb3_mpc.common.execution import acceleration
from sb3_mpc.common.execution.acceleration import set_learning_rate
from sb3_mpc.common.execution.cuda_graphs import WARM_UP_CALLS, GraphedFunction
from sb3_mpc.common.planning.plan import Plan
from sb3_mpc.common.policies import planning_policy
from sb3_mpc.common.policies.planning_policy import PlanningPolicy
from sb3_mpc.fac_tdmpc import student_training
from tests.support.agents import PointEnv, assert_same_state, make_agent, vec
from tests.support.recording import TracingRuntime

ENOUGH = WARM_UP_CALLS + 2


def tensors_of(policy: PlanningPolicy) -> list[th.Tensor]:
    """:return: all that updates change"""
    optimizers = [part for part in vars(policy).values() if isinstance(part, th.optim.Optimizer)]
    state = [part for optimizer in optimizers for state in optimizer.state.values() for part in state.values()]
    tensors = [*policy.parameters(), *policy.buffers(), *(part for part in state if isinstance(part, th.Tensor))]
    return [tensor.detach() for tensor in tensors]


class Agent:
    """
    An agent, and the recordings of its functions by their names.

    :param model: the agent, which records with ``compile=True``
    """

    def __init__(self, model: Any) -> None:
        self.model, self.runtimes = model, dict[str, list[TracingRuntime]]()

    def graphed(self, function: Callable[..., Any], constants: Callable[[], Hashable]) -> GraphedFunction:
        runtime = TracingRuntime(lambda: tensors_of(self.model.policy))
        self.runtimes.setdefault(function.__name__, []).append(runtime)
        return GraphedFunction(function, constants, runtime)

    def recordings(self, name: str) -> list[int]:
        """:return: number of recordings that each function of this name has made"""
        return [runtime.recordings for runtime in self.runtimes[name]]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Agent]]:
    """:return: function that makes an agent twice, eager and recorded"""

    def make(algorithm: Any, env: Callable[[], Any], **kwargs: Any) -> list[Agent]:
        agents = [
            Agent(make_agent(algorithm, env(), seed=0, horizon=1, compile=compile, **kwargs))
            for compile in (False, True)
        ]
        for module in (common, planning_policy, student_training):
            monkeypatch.setattr(module, "graphed", agents[1].graphed)
            monkeypatch.setattr(module, "compile_function", lambda function, **_: function)
        monkeypatch.setattr(PlanningPolicy, "compile_plan", PlanningPolicy.record_plan)
        return agents

    return make


def assert_equal(agents: list[Agent]) -> None:
    eager, recorded = (agent.model.get_parameters() for agent in agents)
    assert_same_state(eager, recorded)
    observations = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    actions = [agent.model.predict(observations, deterministic=True)[0] for agent in agents]
    np.testing.assert_array_equal(*actions)


def test_recorded_runs_equal_eager_ones(algorithm: Any, pair: Callable[..., list[Agent]]) -> None:
    own: dict[Any, dict[str, Any]] = {BMPC: dict(reanalyze_interval=2), FacTDMPC: dict(distill_steps=ENOUGH)}
    agents = pair(algorithm, lambda: vec(PointEnv), **own.get(algorithm, {}))
    for agent in agents:
        agent.model.learn(20)
    assert_equal(agents)
    functions = {"plan", "update"} | ({"distill_update"} if algorithm is FacTDMPC else set())
    assert agents[1].runtimes.keys() == functions
    for name, runtimes in agents[1].runtimes.items():
        assert any(runtime.replays for runtime in runtimes), f"no {name} was recorded"
    assert algorithm is not BMPC or len(agents[1].runtimes["plan"]) == 2, "one of them is that of the reanalysis"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [TDMPC2, BMPC])
def test_first_termination_and_new_parameters(algorithm: Any, pair: Callable[..., list[Agent]]) -> None:
    """Both replace tensors that a recording of an update, a plan or a reanalysis would go on to use."""
    own = dict(reanalyze_interval=1) if algorithm is BMPC else {}
    agents = pair(algorithm, lambda: vec(lambda: PointEnv(16, terminate=True)), learning_starts=4, **own)
    for agent in agents:
        agent.model.learn(12)
        parameters = copy.deepcopy(agent.model.get_parameters())
        assert not agent.model.policy.episodic
        th.manual_seed(0)  # of the network that a termination adds
        agent.model.learn(12, reset_num_timesteps=False)
        assert agent.model.policy.episodic
    assert_equal(agents)
    for agent in agents:
        agent.model.set_parameters(copy.deepcopy(parameters))  # optimisers keep those given
        agent.model.learn(6, reset_num_timesteps=False)
    assert_equal(agents)
    assert all(all(agents[1].recordings(name)) for name in agents[1].runtimes)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [TDMPCSquare, MBDPO])
def test_changed_settings_hold_in_recordings(algorithm: Any, pair: Callable[..., list[Agent]]) -> None:
    """Each of them is a number in a recording."""
    agents = pair(algorithm, lambda: vec(PointEnv))
    names = ["tau", "rho", "gamma", "max_grad_norm", "min_std"]
    names += [f"{name}_coef" for name in ("consistency", "reward", "value", "entropy")]
    names += ["prior_coef"] if algorithm is TDMPCSquare else ["contrastive_coef", "contrastive_neg_noise"]
    for agent in agents:
        agent.model.learn(16)
        for name in names:
            setattr(agent.model, name, getattr(agent.model, name) / 2)
        planner = agent.model.policy.planner
        planner.temperature, planner.gamma, planner.contrastive_clip = 1.5, 0.5, 0.1
        agent.model.policy.model_optimizer.param_groups[0]["weight_decay"] = 0.1
        frozen = agent.model.policy.world_model.reward_head.requires_grad_(False)
        before = copy.deepcopy(frozen.state_dict())
        agent.model.learn(12, reset_num_timesteps=False)
        assert_same_state(dict(before), dict(frozen.state_dict()))
    assert_equal(agents)
    assert agents[1].recordings("update") == [2]


@pytest.mark.parametrize("deterministic", [False, True])
def test_plans_in_parts_of_one_shape(algorithm: Any, deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven environments, at most three at once: what is recorded has one shape, and the actions do not change."""
    model = make_agent(algorithm, PointEnv(), learning_rate=1e-2, seed=0).learn(20)
    policy, planner = model.policy, model.policy.active()[1]
    monkeypatch.setattr(type(planner), "environments_at_once", lambda self, device: 3)
    state = (np.random.default_rng(0).uniform(-1, 1, (7, planner.horizon, 2)).astype(np.float32),)
    observations = np.random.default_rng(1).uniform(-1, 1, (7, 3)).astype(np.float32)
    sizes: list[int] = []

    def make(*args: Any) -> Plan:
        sizes.append(len(args[0]))
        return policy.plan(*args)

    plans = []
    for function in (None, partial(policy.plan_in_parts, make)):
        policy._compiled_plan = function
        policy.seed(0)
        plans.append(policy.plan_batch(observations, state, deterministic=deterministic)[0])
    assert sizes == [3, 3, 3]
    for name, whole, parts in zip(Plan._fields, *plans, strict=True):
        th.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4, msg=name)


def test_memory_decides_how_many_environments_are_planned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = th.device("cuda")
    model = make_agent(TDMPC2, vec(PointEnv), num_samples=512, policy_kwargs=dict(net_arch=[512, 512]))
    assert model.policy.planner.environments_at_once(device) == 128  # 128 MB for the output of a layer
    factored = make_agent(FacTDMPC, vec(PointEnv), num_samples=512, policy_kwargs=dict(net_arch=[512, 512]))
    assert factored.policy.student_planner.environments_at_once(device) == 128  # two groups of half the width
    monkeypatch.setattr(acceleration, "LARGEST_OUTPUT_ELSEWHERE", 1)
    assert model.policy.planner.environments_at_once(device) == 1


def test_recorded_step_follows_the_learning_rate() -> None:
    """The rate is a tensor, read by the recorded step; a number would stay what it was."""
    weights = [th.nn.Parameter(th.zeros(3)) for _ in range(2)]
    optimizers = [th.optim.Adam([weight], fused=True) for weight in weights]
    runtime = TracingRuntime(lambda: [weights[1].detach(), *optimizers[1].state[weights[1]].values()])

    def step(weight: th.nn.Parameter, optimizer: th.optim.Optimizer, gradient: th.Tensor) -> th.Tensor:
        weight.grad = gradient
        optimizer.step()
        return gradient + 0

    recorded = GraphedFunction(lambda gradient: step(weights[1], optimizers[1], gradient), runtime=runtime)
    for i in range(2 * ENOUGH):
        for optimizer, records in zip(optimizers, (False, True), strict=True):
            set_learning_rate(optimizer, 0.1 / (1 + i), records)
        step(weights[0], optimizers[0], th.full((3,), 1.0 + i))
        recorded(th.full((3,), 1.0 + i))
    assert runtime.recordings == 1 and runtime.replays > ENOUGH
    th.testing.assert_close(*weights)
