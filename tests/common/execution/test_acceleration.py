"""How the numerical work is executed: what is chosen, and that the fast ways give what the eager float32 one gives."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_mpc import BMPC, MBDPO, TDMPC2, FacTDMPC
from sb3_mpc.common import collection
from sb3_mpc.common.execution import acceleration
from sb3_mpc.common.execution.acceleration import CALLS_WORTH_COMPILING, Acceleration, choose_acceleration
from sb3_mpc.common.planning.plan import Plan
from tests.support.agents import ALGORITHMS, PointEnv, make_agent, vec

CPU, GPU = th.device("cpu"), th.device("cuda")
LARGE, TINY = nn.Linear(1_000, 1_000), nn.Linear(10, 10)
PRODUCTS = {th.ops.aten.mm, th.ops.aten.addmm, th.ops.aten.bmm, th.ops.aten.baddbmm}


class ProductTypes(TorchDispatchMode):
    """Collects the types of the matrices that are multiplied within."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[th.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            self.seen.add(args[-1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[[], ["avx512_bf16"], ["amx_bf16"]], ids=lambda units: units[0] if units else "no units")
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend that the processor has these units for bfloat16."""
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: dict.fromkeys(request.param, True), raising=False)
    return request.param


def test_bfloat16_only_where_the_processor_has_units(units: list[str]) -> None:
    assert choose_acceleration("auto", LARGE, CPU) == Acceleration(compiles=False, bfloat16=bool(units))
    assert choose_acceleration(True, LARGE, CPU) == Acceleration(compiles=True, bfloat16=bool(units))
    assert choose_acceleration(False, LARGE, CPU, calls=10**9) == Acceleration(compiles=False, bfloat16=False)
    assert not choose_acceleration("auto", TINY, CPU).bfloat16 and not choose_acceleration("auto", LARGE, GPU).bfloat16


def test_auto_compiles_long_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "has_compiler", lambda: True)
    assert choose_acceleration("auto", LARGE, CPU, CALLS_WORTH_COMPILING).compiles
    assert not choose_acceleration("auto", LARGE, CPU, CALLS_WORTH_COMPILING - 1).compiles
    assert choose_acceleration("auto", TINY, CPU, CALLS_WORTH_COMPILING) == Acceleration(compiles=True, bfloat16=False)
    assert not choose_acceleration("auto", LARGE, GPU, 10**9).compiles
    monkeypatch.setattr(acceleration, "has_compiler", lambda: False)
    assert not choose_acceleration("auto", LARGE, CPU, 10**9).compiles


def test_compiler_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("C++ compile error: Python.h is missing")

    acceleration.has_compiler.cache_clear()
    monkeypatch.setattr(th, "compile", fail)
    assert not choose_acceleration(False, LARGE, CPU, 10**9).compiles  # which tries nothing
    with pytest.warns(UserWarning, match='compile="auto" runs without torch.compile, .* Python.h is missing'):
        assert not choose_acceleration("auto", LARGE, CPU, 10**9).compiles
    acceleration.has_compiler.cache_clear()


def test_run_that_goes_on_is_executed_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled and eager updates differ by rounding: a resumed run would not equal the uninterrupted one."""
    seen: list[int] = []

    def choose(compile: Any, model: Any, device: Any, calls: int = 0) -> Acceleration:
        seen.append(calls)
        return Acceleration(compiles=False, bfloat16=False)

    monkeypatch.setattr(collection, "choose_acceleration", choose)
    model = make_agent(TDMPC2, PointEnv(), learning_starts=100).learn(30)
    make_agent(TDMPC2, PointEnv(), learning_starts=100).learn(50)
    model.learn(20, reset_num_timesteps=False)
    assert seen == [60, 100, 100]  # plans and updates
    make_agent(TDMPC2, vec(PointEnv, PointEnv), gradient_steps=3, train_freq=2).learn(40)
    make_agent(TDMPC2, vec(PointEnv, PointEnv), gradient_steps=-1, train_freq=2).learn(40)
    assert seen[3:] == [20 + 30, 20 + 40]


def test_unknown_switch_is_refused() -> None:
    with pytest.raises(ValueError, match="compile='fast' is not understood"):
        make_agent(TDMPC2, PointEnv(), compile="fast")


def test_reduced_plans_are_close_to_float32(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_agent(algorithm, PointEnv(), learning_rate=1e-2, num_samples=64).learn(40)
    observations = np.stack([model.observation_space.sample() / 5 for _ in range(4)])
    policy = model.policy
    planner = policy.active()[1]
    evaluate = planner.evaluate

    def plan(bfloat16: bool, deterministic: bool = False) -> tuple[Plan, set[th.dtype]]:
        policy.acceleration = Acceleration(compiles=False, bfloat16=bfloat16)
        policy.seed(0)
        with ProductTypes() as types:
            return policy.plan_batch(observations, deterministic=deterministic)[0], types.seen

    (expected, eager), (reduced, types) = plan(False), plan(True)
    assert eager == {th.float32} and types == {th.float32, th.bfloat16}
    assert {part.dtype for part in reduced} == {th.float32}
    # Returns, because elites that are nearly as good as each other may have quite different actions
    same = th.equal(reduced.elite_value, expected.elite_value)
    assert not same or algorithm is MBDPO, "nothing was reduced"  # MBDPO's last values are not
    th.testing.assert_close(reduced.elite_value, expected.elite_value, rtol=0.02, atol=0.02)
    assert th.equal(plan(False)[0].action, expected.action)
    # The last iteration of a plan whose mean is the action is not reduced
    seen: list[bool] = []
    monkeypatch.setattr(planner, "evaluate", lambda *x: seen.append(th.is_autocast_enabled("cpu")) or evaluate(*x))
    for deterministic in (True, False):
        plan(True, deterministic)
        assert seen == [True] * (planner.iterations - 1) + [not deterministic and algorithm is not MBDPO]
        seen.clear()


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a is not FacTDMPC])  # its groups are one batch
def test_plans_are_the_same_in_parts(algorithm: Any, deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_agent(algorithm, PointEnv(), learning_rate=1e-2, seed=0).learn(40)
    observations = np.stack([model.observation_space.sample() / 5 for _ in range(5)])
    evaluated: list[int] = []
    planner = model.policy.active()[1]
    evaluate = planner.evaluate
    monkeypatch.setattr(planner, "evaluate", lambda z, *x: evaluated.append(len(z)) or evaluate(z, *x))

    def plan() -> Plan:
        evaluated.clear()
        model.policy.seed(0)
        return model.policy.plan_batch(observations, deterministic=deterministic)[0]

    whole, calls = plan(), len(evaluated)
    largest = 2 * planner.num_samples * max(planner.world_model.hidden)
    monkeypatch.setitem(acceleration.LARGEST_OUTPUT, "cpu", largest)
    parts = plan()
    assert evaluated == [2, 2, 1] * calls
    th.testing.assert_close(parts.action, whole.action, atol=1e-3 if algorithm is MBDPO else 1e-5, rtol=0)
    planner._compiled["evaluate"] = planner.evaluate  # what is compiled is called with one shape
    evaluated.clear()
    th.testing.assert_close(plan().action, parts.action, atol=1e-3 if algorithm is MBDPO else 1e-5, rtol=0)
    assert set(evaluated) == {1}


def test_training_stays_in_float32_while_plans_are_reduced() -> None:
    model = make_agent(TDMPC2, PointEnv()).learn(12)
    model.policy.acceleration = Acceleration(compiles=False, bfloat16=True)
    with ProductTypes() as types:
        model.train(1, model.batch_size)
    assert types.seen == {th.float32}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [TDMPC2, BMPC])  # each takes seconds; BMPC compiles its reanalyze, too
def test_traced_functions_equal_eager_ones(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing without code generation, which takes minutes: graphs that miss or freeze something would differ."""
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    th._dynamo.reset()
    th._dynamo.utils.counters.clear()
    actions, parameters = [], []
    for compile in (False, True):
        model = make_agent(algorithm, PointEnv(), compile=compile, seed=0, learning_rate=lambda left: 1e-3 * left)
        model.learn(24)
        actions.append(model.predict(model.observation_space.sample() * 0, deterministic=True)[0])
        parameters.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert model._compiled and model.policy.planner._compiled
    assert not th._dynamo.utils.counters["graph_break"], "gradients are part of the graphs"
    th.testing.assert_close(parameters[1], parameters[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(actions[1], actions[0], atol=1e-2)
    graphs = 4 if algorithm is BMPC else 3
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "another learning rate compiles anew"
