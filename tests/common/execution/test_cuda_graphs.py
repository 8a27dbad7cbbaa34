"""Recording and replaying, with a stand-in for the GPU: what is recorded runs on static tensors, as CUDA graphs do."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch as th
from torch.utils._pytree import tree_flatten

from sb3_mpc import TDMPC2
from sb3_mpc.common.execution.acceleration import set_learning_rate
from sb3_mpc.common.execution.cuda_graphs import MAX_RECORDINGS, WARM_UP_CALLS, CudaRuntime, GraphedFunction
from tests.support.agents import PointEnv, make_agent, vec


class Noise(NamedTuple):
    """Nested arguments, one of which may be missing."""

    scale: th.Tensor
    shift: th.Tensor | None = None


class StandIn(CudaRuntime):
    """
    Records on the CPU. As on the device, recording changes nothing and results always land in the same tensors.

    :param state: what the function changes
    """

    def __init__(self, state: th.Tensor) -> None:
        self.state, self.recordings, self.replays = state, 0, 0

    def applies(self, tensor: th.Tensor) -> bool:
        return True

    def warm_up(self, function: Callable[[], Any], device: th.device) -> Any:
        return function()

    def record(self, function: Callable[[], Any], device: th.device) -> tuple[Callable[[], None], Any]:
        before = self.state.clone()
        outputs = function()
        self.state.copy_(before)
        self.recordings += 1

        def replay() -> None:
            self.replays += 1
            for static, new in zip(tree_flatten(outputs)[0], tree_flatten(function())[0], strict=True):
                static.copy_(new)

        return replay, outputs


@pytest.fixture
def state() -> th.Tensor:
    return th.zeros(())


@pytest.fixture
def graphed(state: th.Tensor) -> GraphedFunction:
    def update(x: th.Tensor, noise: Noise, factor: float = 1.0) -> dict[str, th.Tensor]:
        state.add_(1)
        shift = 0 if noise.shift is None else noise.shift
        return dict(y=factor * x * noise.scale + shift, calls=state.clone())

    return GraphedFunction(update, runtime=StandIn(state))


def test_replays_equal_calls(graphed: GraphedFunction, state: th.Tensor) -> None:
    results = [graphed(th.full((3,), float(i)), Noise(th.tensor(2.0))) for i in range(8)]
    for i, result in enumerate(results):  # the caller's own: later calls have not overwritten them
        assert result["y"].tolist() == [2.0 * i] * 3 and result["calls"] == i + 1
    runtime: Any = graphed.runtime
    assert state == 8, "a recording is no update"
    assert (runtime.recordings, runtime.replays) == (1, 8 - WARM_UP_CALLS)


@pytest.mark.parametrize(
    "other",
    [
        (th.ones(4), Noise(th.ones(()))),
        (th.ones(3, dtype=th.float64), Noise(th.ones(()))),
        (th.ones(3), Noise(th.ones(()), th.ones(3))),
        (th.ones(3), Noise(th.ones(())), 5.0),
    ],
    ids=["shape", "type", "structure", "value"],
)
def test_other_calls_are_recorded_anew(graphed: GraphedFunction, other: tuple[Any, ...]) -> None:
    usual = (th.ones(3), Noise(th.ones(())))
    expected = graphed.function(*other)["y"]
    for _ in range(WARM_UP_CALLS + 2):
        assert graphed(*usual)["y"].tolist() == [1.0] * 3
        assert th.equal(graphed(*other)["y"], expected)
    runtime: Any = graphed.runtime
    assert runtime.recordings == 2 and runtime.replays == 4


def test_changed_constants_are_recorded_anew(state: th.Tensor) -> None:
    settings = SimpleNamespace(factor=2.0)
    graphed = GraphedFunction(lambda x: settings.factor * x, lambda: settings.factor, StandIn(state))
    for factor in (2.0, 5.0, 2.0):
        settings.factor = factor
        assert all(graphed(th.ones(1)) == factor for _ in range(WARM_UP_CALLS + 2))
    runtime: Any = graphed.runtime
    assert runtime.recordings == 2


def test_few_recordings_are_kept(state: th.Tensor) -> None:
    graphed = GraphedFunction(lambda x: 2 * x, runtime=StandIn(state))
    for size in range(1, 2 * MAX_RECORDINGS):
        assert all(th.equal(graphed(th.ones(size)), th.full((size,), 2.0)) for _ in range(WARM_UP_CALLS + 2))
        assert len(graphed._recordings) <= MAX_RECORDINGS


def test_hyper_parameters_and_frozen_parameters_are_constants_of_an_update() -> None:
    model = make_agent(TDMPC2, vec(PointEnv))
    before = model.recorded_constants()
    assert before == model.recorded_constants()
    model.learn(20)
    assert model.recorded_constants() == before, "what changes in every run is none"
    for name in ("tau", "rho", "gamma", "consistency_coef", "max_grad_norm"):
        value = getattr(model, name)
        setattr(model, name, value / 2)
        assert model.recorded_constants() != before, name
        setattr(model, name, value)
    next(model.policy.world_model.encoder.parameters()).requires_grad_(False)
    assert model.recorded_constants() != before


def test_what_cannot_be_recorded_is_called(state: th.Tensor) -> None:
    class Unable(StandIn):
        def record(self, function: Callable[[], Any], device: th.device) -> tuple[Callable[[], None], Any]:
            raise RuntimeError("operation not permitted when stream is capturing\ndetails")

    def double(x: th.Tensor) -> th.Tensor:
        return 2 * x

    graphed = GraphedFunction(double, runtime=Unable(state))
    for _ in range(WARM_UP_CALLS):
        graphed(th.ones(1))
    with pytest.warns(UserWarning, match="operation not permitted when stream is capturing"):
        assert graphed(th.ones(1)) == 2
    assert graphed(th.full((1,), 3.0)) == 6


def test_other_devices_are_left_alone() -> None:
    graphed = GraphedFunction(lambda x: x + 1)
    assert all(graphed(th.ones(1)) == 2 for _ in range(2 * WARM_UP_CALLS)) and not graphed._recordings


def test_learning_rate_of_a_recorded_step_changes_in_place() -> None:
    weight = th.nn.Parameter(th.zeros(1))
    (group,) = th.optim.Adam([weight], lr=1.0).param_groups
    set_learning_rate(group, 0.5, recorded=True)
    tensor = group["lr"]
    set_learning_rate(group, 0.25, recorded=True)
    assert group["lr"] is tensor and tensor == 0.25
    set_learning_rate(group, 0.125, recorded=False)
    assert group["lr"] == 0.125 and not isinstance(group["lr"], th.Tensor)
