"""Recording and replaying, with a stand-in for the GPU: what is recorded runs on static tensors, as CUDA graphs do."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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

    def memory(self, device: th.device) -> Any:
        return object()

    def record(self, function: Callable[[], Any], device: th.device, memory: Any) -> tuple[Callable[[], None], Any]:
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
    model = make_agent(TDMPC2, vec(PointEnv)).learn(12)
    before = model.recorded_constants()
    assert before == model.recorded_constants()
    model.learn(20)
    assert model.recorded_constants() == before, "what changes in every run is none"
    for name in ("tau", "rho", "gamma", "consistency_coef", "max_grad_norm"):
        value = getattr(model, name)
        setattr(model, name, value / 2)
        assert model.recorded_constants() != before, name
        setattr(model, name, value)
    for part, name in ((model.policy.planner, "temperature"), (model.policy.running_scale, "tau")):
        value = getattr(part, name)
        setattr(part, name, value / 2)
        assert model.recorded_constants() != before, name
        setattr(part, name, value)
    group = model.policy.model_optimizer.param_groups[0]
    group["betas"], betas = (0.5, 0.9), group["betas"]
    assert model.recorded_constants() != before
    group["betas"] = betas
    assert model.recorded_constants() == before
    next(model.policy.world_model.encoder.parameters()).requires_grad_(False)
    assert model.recorded_constants() != before


def test_tensors_that_are_replaced_are_recorded_anew() -> None:
    model = make_agent(TDMPC2, vec(PointEnv)).learn(12)
    before = model.recorded_constants()
    for part in (model.policy, model.policy.model_optimizer, model.policy.pi_optimizer):
        state = copy.deepcopy(part.state_dict())
        part.load_state_dict(state, **({"assign": True} if part is model.policy else {}))
        after = model.recorded_constants()
        assert after != before, type(part)
        before = after
    model.policy.load_state_dict(copy.deepcopy(model.policy.state_dict()))
    assert model.recorded_constants() == before, "parameters that change in place are no constants"


def test_what_cannot_be_recorded_is_called(state: th.Tensor) -> None:
    class Unable(StandIn):
        def record(self, function: Callable[[], Any], device: th.device, memory: Any) -> Any:
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
    optimizer = th.optim.Adam([weight], lr=1.0)
    (group,) = optimizer.param_groups
    set_learning_rate(optimizer, 0.5, recorded=True)
    tensor = group["lr"]
    set_learning_rate(optimizer, 0.25, recorded=True)
    assert group["lr"] is tensor and tensor == 0.25
    group["lr_scale"] = 2.0
    set_learning_rate(optimizer, 0.125, recorded=False)
    assert group["lr"] == 0.25 and not isinstance(group["lr"], th.Tensor)


class FakeCuda:
    """The functions of ``torch.cuda`` that recordings call: says on which GPU each of them was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.current, self.stream, self.calls, self.fails = 0, "stream of the program", [], fails
        for name in ("device", "stream", "graph"):
            monkeypatch.setattr(th.cuda, name, getattr(self, f"enter_{name}"))
        monkeypatch.setattr(th.cuda, "Stream", lambda: self.say("Stream") or SimpleNamespace(wait_stream=print))
        monkeypatch.setattr(th.cuda, "graph_pool_handle", lambda: self.say("graph_pool_handle") or "pool")
        monkeypatch.setattr(th.cuda, "CUDAGraph", lambda: self.say("CUDAGraph") or SimpleNamespace(replay="replay"))
        monkeypatch.setattr(th.cuda, "current_stream", lambda: SimpleNamespace(name=self.stream, wait_stream=print))
        monkeypatch.setattr(th.cuda, "set_stream", lambda stream: setattr(self, "stream", stream.name))

    def say(self, name: str) -> None:
        self.calls.append((name, self.current))

    @contextmanager
    def enter_device(self, device: th.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    @contextmanager
    def enter_stream(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, "side stream"
        yield
        self.stream = before

    @contextmanager
    def enter_graph(self, graph: Any, pool: Any, stream: Any) -> Iterator[None]:
        assert pool == "pool"
        self.say("graph")
        self.stream = "stream of the recording"
        yield
        if self.fails:  # as PyTorch's own, which then does not leave its stream
            raise RuntimeError("operation not permitted when stream is capturing")
        self.stream = "stream of the program"


@pytest.mark.parametrize("fails", [False, True])
def test_all_happens_on_the_gpu_of_the_model(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, runtime, second = FakeCuda(monkeypatch, fails), CudaRuntime(), th.device("cuda", 1)

    def function() -> str:
        cuda.say("function")
        return cuda.stream

    assert runtime.warm_up(function, second) == "side stream"
    memory = runtime.memory(second)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        assert runtime.record(function, second, memory) == ("replay", "stream of the recording")
    assert {where for _, where in cuda.calls} == {1} and [name for name, _ in cuda.calls].count("function") == 2
    assert cuda.stream == "stream of the program"


def test_recordings_share_memory_as_long_as_one_of_them_lives(state: th.Tensor) -> None:
    class Pools(StandIn):
        def __init__(self) -> None:
            super().__init__(state)
            self.opened, self.used = 0, []

        def memory(self, device: th.device) -> Any:
            self.opened += 1
            return self.opened

        def record(self, function: Callable[[], Any], device: th.device, memory: Any) -> Any:
            self.used.append(memory)
            return super().record(function, device, memory)

    runtime = Pools()
    graphed = GraphedFunction(lambda x: 2 * x, runtime=runtime)
    for size in range(1, 4):
        for _ in range(WARM_UP_CALLS + 2):
            graphed(th.ones(size))
    assert runtime.used == [1, 1, 1]
    for size in range(4, 4 + MAX_RECORDINGS):  # called once: they drive the others out
        graphed(th.ones(size))
    for _ in range(WARM_UP_CALLS + 2):
        graphed(th.ones(1))
    assert runtime.used == [1, 1, 1, 2], "the first pool has ended with its last recording"
