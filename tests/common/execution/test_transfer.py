"""Data reach devices that are not here: without float64, from page-locked memory, and the one they are meant for."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_mpc import TDMPC2
from sb3_mpc.common.execution.transfer import in_float32, to_device, with_index
from sb3_mpc.common.policies import planning_policy, views
from tests.support.agents import PointEnv, make_agent

CPU, GPU, MPS = (th.device(name) for name in ("cpu", "cuda", "mps"))


def test_float64_stays_on_the_cpu_alone() -> None:
    arrays = dict(position=np.ones(3), image=np.zeros(3, np.uint8))
    assert in_float32(arrays, CPU) is arrays
    for device in (GPU, MPS):
        converted = in_float32(arrays, device)
        assert {key: part.dtype for key, part in converted.items()} == dict(position=np.float32, image=np.uint8)
        assert in_float32(np.ones(2, np.float64), device).dtype == np.float32
    assert arrays["position"].dtype == np.float64, "the caller's own"


def test_planner_and_actor_see_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_agent(TDMPC2, PointEnv(observation_dtype=np.float64))
    for module in (planning_policy, views):
        monkeypatch.setattr(module, "in_float32", lambda arrays, device: in_float32(arrays, MPS))
    seen: list[th.dtype] = []
    encode = model.policy.world_model.encode
    monkeypatch.setattr(model.policy.world_model, "encode", lambda x, *rest: seen.append(x.dtype) or encode(x, *rest))
    observation = model.observation_space.sample()
    assert observation.dtype == np.float64
    model.predict(observation)
    model.predict(observation, use_planner=False)
    assert seen == [th.float32] * 2


def test_a_gpu_copies_from_page_locked_memory_while_the_program_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(th.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(th.Tensor, "to", lambda self, *args, **kwargs: calls.append((args, kwargs)) or self)
    assert to_device(np.ones(3), GPU).dtype == th.float32
    assert calls == ["pinned", ((GPU,), dict(non_blocking=True))]
    calls.clear()
    to_device(np.ones(3, np.float32), MPS)
    assert calls == [((MPS,), {})]


def test_a_gpu_without_number_is_the_one_that_is_current_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cuda, "current_device", lambda: 1)
    assert with_index(GPU) == th.device("cuda:1")
    assert with_index(th.device("cuda:0")) == th.device("cuda:0") and with_index(CPU) == CPU
