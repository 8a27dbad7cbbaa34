"""The processor's library and number of threads: what is chosen, applied and restored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_mpc import TDMPC2
from sb3_mpc.common.execution import processor
from sb3_mpc.common.execution.acceleration import Acceleration, choose_acceleration
from sb3_mpc.common.execution.processor import busy_cores, choose_threads
from tests.support.agents import PointEnv, make_agent

CPU = th.device("cpu")
LARGE, TINY = nn.Linear(1_000, 1_000), nn.Linear(10, 10)
needs_switch = pytest.mark.skipif(not hasattr(th.backends.mkldnn, "matmul"), reason="PyTorch's switch is newer")


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine of four cores without settings of a user, ``busy`` of which are in use by others."""
    for variable in processor.THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(th, "get_num_threads", lambda: 4)
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)

    def busy(cores: float) -> None:
        monkeypatch.setattr(processor, "busy_cores", lambda usable: cores)

    busy(0.0)
    return busy


@pytest.mark.parametrize(("busy", "threads"), [(0.0, 4), (0.4, 4), (1.0, 3), (2.6, 1), (4.0, 1), (9.0, 1)])
def test_large_models_leave_busy_cores_alone(busy: float, threads: int, four_cores: Any) -> None:
    four_cores(busy)
    assert choose_threads(large=True) == threads


def test_small_models_use_one_thread(four_cores: Any) -> None:
    assert choose_threads(large=False) == 1


def test_a_users_number_of_threads_stays(four_cores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "get_num_threads", lambda: 3)
    assert choose_threads(large=True) == 3, "it is an upper bound"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert choose_threads(large=False) is None


def test_busy_cores_by_the_kernels_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = tmp_path / "stat"
    monkeypatch.setattr(processor, "STATISTICS", statistics)
    before = "cpu 0 0 0 0\ncpu0 100 0 0 900 0 0 0 0 0 0\ncpu1 0 0 0 100 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0 0 0\n"
    after = "cpu 0 0 0 0\ncpu0 115 3 2 900 0 0 0 0 0 0\ncpu1 5 2 3 107 3 0 0 0 0 0\ncpu2 20 0 0 0 0 0 0 0 0 0\n"
    statistics.write_text(before)
    monkeypatch.setattr(processor.time, "sleep", lambda seconds: statistics.write_text(after))
    assert busy_cores({0, 1}) == 1.5  # all and a half of 20 ticks; the third core is not ours
    statistics.write_text(before)
    assert busy_cores({2}) == 1.0
    monkeypatch.setattr(processor, "STATISTICS", tmp_path / "missing")
    assert busy_cores({0, 1}) == 0.0


@needs_switch
@pytest.mark.parametrize(
    ("name", "units", "chosen"),
    [
        ("AMD EPYC", ["avx512_f"], True),
        ("AMD EPYC", ["avx512_f", "avx512_bf16"], True),
        ("AMD EPYC", ["avx2"], False),
        ("AMD EPYC", ["avx512_f", "amx_bf16"], False),
        ("Intel(R) Xeon(R)", ["avx512_f"], False),
    ],
)
def test_onednn_where_it_is_faster_and_as_exact(
    name: str, units: list[str], chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dict.fromkeys(units, True) | dict(cpu_name=name)
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: known, raising=False)
    assert choose_acceleration("auto", LARGE, CPU).onednn == chosen
    assert not choose_acceleration("auto", TINY, CPU).onednn
    assert not choose_acceleration(False, LARGE, CPU).onednn


@needs_switch
def test_library_and_threads_are_restored() -> None:
    products, threads = th.backends.mkldnn.matmul, th.get_num_threads()
    x = th.rand(64, 512, generator=th.Generator().manual_seed(0))
    expected = (x.double() @ x.double().T).float()
    with pytest.raises(KeyError), Acceleration(False, False, onednn=True, threads=threads + 1).applied():
        assert (products.fp32_precision, th.get_num_threads()) == ("bf16", threads + 1)
        if not processor.has_units("amx_bf16"):
            th.testing.assert_close(x @ x.T, expected, rtol=1e-5, atol=1e-5)
        raise KeyError
    assert (products.fp32_precision, th.get_num_threads()) == ("none", threads)
    products.fp32_precision = "ieee"  # a user's own
    try:
        with Acceleration(False, False, onednn=True).applied():
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == "ieee"
    finally:
        products.fp32_precision = "none"


@needs_switch
@pytest.mark.parametrize(
    "acceleration", [Acceleration(False, False, onednn=True), Acceleration(False, False, tf32=True)]
)
def test_pytorchs_old_and_new_settings_of_the_precision_agree(acceleration: Acceleration) -> None:
    """Where they differ, reading one of them is an error, which compilers and users' code run into."""
    libraries: list[Any] = [th.backends.cuda.matmul, th.backends.mkldnn.matmul]
    with acceleration.applied():
        assert th.get_float32_matmul_precision() == ("high" if acceleration.tf32 else "medium")
        assert th.backends.cuda.matmul.allow_tf32 and th.backends.cuda.matmul.fp32_precision == "tf32"
        with acceleration.applied():  # within another one
            assert th.compile(lambda x: x @ x + 1, backend="aot_eager")(th.ones(2, 2)).tolist() == [[3, 3], [3, 3]]
    assert th.get_float32_matmul_precision() == "highest"
    assert [library.fp32_precision for library in libraries] == ["none", "none"]
    th.set_float32_matmul_precision("high")  # a user's own
    try:
        with acceleration.applied():
            assert th.get_float32_matmul_precision() == "high"
        assert th.get_float32_matmul_precision() == "high" and libraries[0].fp32_precision == "tf32"
    finally:
        th.set_float32_matmul_precision("highest")
        for library in libraries:
            library.fp32_precision = "none"


def test_convolutions_are_tuned_within_plans_and_updates() -> None:
    assert not th.backends.cudnn.benchmark
    with pytest.raises(KeyError), Acceleration(False, False, tuned_convolutions=True).applied():
        assert th.backends.cudnn.benchmark
        raise KeyError
    assert not th.backends.cudnn.benchmark


def test_gpus_multiply_in_tf32_but_for_the_reference() -> None:
    gpu, images = th.device("cuda", 1), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    for compile in (True, "auto"):
        chosen = choose_acceleration(compile, images, gpu)
        assert chosen.tf32 and chosen.tuned_convolutions and "products in TF32" in chosen.describe()
        assert not choose_acceleration(compile, LARGE, gpu).tuned_convolutions
        assert not choose_acceleration(compile, images, CPU).tf32
    assert choose_acceleration(False, images, gpu) == Acceleration(compiles=False, bfloat16=False)


def test_learning_plans_and_updates_with_the_chosen_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in processor.THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    before = th.get_num_threads()
    th.set_num_threads(2)
    try:
        model = make_agent(TDMPC2, PointEnv(), compile="auto")
        seen = set()
        update, plan = model.update, model.policy.plan
        monkeypatch.setattr(model, "update", lambda *args: seen.add(th.get_num_threads()) or update(*args))
        monkeypatch.setattr(model.policy, "plan", lambda *args: seen.add(th.get_num_threads()) or plan(*args))
        model.policy.predict(np.zeros(3, np.float32))
        assert seen == {1}, "acting alone, too: on busy cores two threads wait for each other"
        model.learn(30)
        assert seen == {1} and th.get_num_threads() == 2
        reference = make_agent(TDMPC2, PointEnv(), compile=False).learn(20)
        assert reference.policy.acceleration.threads is None, "the reference is left alone"
    finally:
        th.set_num_threads(before)


def test_the_choice_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    make_agent(TDMPC2, PointEnv(), compile=False, verbose=1).learn(5)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Execution: ")]
    assert len(lines) == 1 and "plans in float32" in lines[0] and "not compiled" in lines[0]
    assert "bfloat16, updates in float32 by oneDNN, compiled" in Acceleration(True, True, True, 2).describe()
