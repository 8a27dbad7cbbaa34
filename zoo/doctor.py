"""
What this machine has and what follows from it: ``python -m sb3_mpc.zoo doctor``.

The report must come whatever is missing: each part of it is a function, whose error is a line of the report.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mpc import TDMPC2
from sb3_mpc.agents.provenance import git_commit, package_versions
from sb3_mpc.common.buffers.memory import available_memory
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.estimate import duration, number_of_updates
from sb3_mpc.common.execution import acceleration
from sb3_mpc.common.execution.processor import capabilities
from sb3_mpc.envs import SUITES
from sb3_mpc.envs.__main__ import examine, quiet
from sb3_mpc.envs.gl import set_headless_backend
from sb3_mpc.zoo.bench import IdleEnv

Facts = dict[str, Any]

UNITS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
DECISIONS = 100_000
# Presets by what they are, None for the papers' settings
MEASURED = {"best": 'preset="best"', "small": 'preset="small"', "cpu": 'preset="cpu"', None: "the paper's 5M"}
SECONDS = 1.3  # for the plans, and for the updates, of a preset: ten seconds or so in all
ENOUGH = 0.8  # of a core, below which the machine is busy
FILLED = 200  # transitions in the replay buffer meanwhile
NUMBERS, ACTIONS = 24, 6  # sizes of observations and actions: those of walker-walk
NOT_VERIFIED = "never run on one by the authors, only on a stand-in for CUDA: `make gpu` verifies and measures it here"


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    parts: dict[str, Callable[[], Facts]] = {
        "Software": software,
        "Processor": processor,
        "Compiler": lambda: compiler(args.quick),
        "GPU": gpu,
        "Memory": memory,
        "OpenGL": opengl,
    }
    if not args.quick:
        parts |= {
            f"{DECISIONS:,} decisions with {name}": part(preset, args.device) for preset, name in MEASURED.items()
        }
    parts |= {"Suites": lambda: suites(args.quick)}  # last: a simulator that crashes takes nothing else along
    report = {}
    for title, function in parts.items():
        report[title] = facts(function)
        if not args.json:
            lines = [f"  {name.replace('_', ' ')}: {text(value)}" for name, value in report[title].items()]
            print("\n".join([title, *lines]), flush=True)
    if args.json:
        print(json.dumps(report, indent=1, default=str))


def part(preset: str | None, device: str) -> Callable[[], Facts]:
    """
    :param preset: name of a preset
    :param device: device to measure on
    :return: part of the report about it
    """
    return lambda: expected_time(preset, device)


def facts(function: Callable[[], Facts]) -> Facts:
    """
    :param function: a part of the report
    :return: what it has found; its error, if it fails; and its warnings
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            found = function()
        except Exception as error:
            found = dict(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    said = [" ".join(str(warning.message).split()) for warning in caught if warning.category is UserWarning]
    return {**found, **({"warnings": said} if said else {})}


def text(value: Any) -> str:
    """
    :param value: plain value
    :return: it on one line
    """
    if isinstance(value, dict):
        return ", ".join(f"{name} {text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(text, value)) or "none"
    return "unknown" if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)


def software() -> Facts:
    """:return: versions"""
    versions = package_versions()
    return dict(system=platform.platform(), python=platform.python_version(), commit=git_commit(), **versions)


def processor() -> Facts:
    """:return: processor, its units and who else uses it"""
    known = capabilities()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    found: Facts = dict(
        name=known.get("cpu_name") or platform.processor() or platform.machine(),
        units=[unit for unit in UNITS if known.get(unit)],
        cores=multiprocessing.cpu_count(),
        usable_by_this_process=usable,
        threads_of_pytorch=th.get_num_threads(),
    )
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 1)
        if found["load"] + 1 > (usable or found["cores"]):
            found["advice"] = "other programs use the cores: with OMP_NUM_THREADS=1 a training is often faster"
    return found


def compiler(quick: bool) -> Facts:
    """
    :param quick: whether not to try it
    :return: what compile="auto" and compile=True need
    """
    name = os.environ.get("CXX", "g++")
    found: Facts = dict(
        path=shutil.which(name) or f"{name} not found: without a C++ compiler nothing is compiled on a CPU"
    )
    if not quick:
        found["torch_compile_works"] = acceleration.has_compiler()
    return found


def gpu() -> Facts:
    """:return: GPUs, and what is known of this package on them"""
    found: Facts = {}
    for index in range(th.cuda.device_count() if th.cuda.is_available() else 0):
        about = th.cuda.get_device_properties(index)
        capability = f"{about.major}.{about.minor}"
        found[f"cuda:{index}"] = f"{about.name}, {about.total_memory / 1e9:.0f} GB, compute capability {capability}"
    if getattr(th.backends, "mps", None) is not None and th.backends.mps.is_available():
        found["mps"] = platform.machine()
    return {**found, "verified": NOT_VERIFIED} if found else dict(found="none that this build of PyTorch can use")


def memory() -> Facts:
    """:return: memory, and what a full replay buffer needs"""
    available = available_memory()
    found: Facts = dict(available_GB=None if available is None else round(available / 1e9, 1))
    action = spaces.Box(-1, 1, (ACTIONS,))
    for name, space in (
        (f"{NUMBERS}_numbers", spaces.Box(-1, 1, (NUMBERS,), np.float32)),
        ("three_64x64_images", spaces.Box(0, 255, (9, 64, 64), np.uint8)),
    ):
        need = SequenceReplayBuffer(1_000_000, space, action, "cpu").nbytes
        fits = (
            ""
            if available is None or need < available
            else f": too much, buffer_size={int(8e5 * available / need):,} fits"
        )
        found[f"default_buffer_of_{name}"] = f"{need / 1e9:.1f} GB{fits}"
    return found


def opengl() -> Facts:
    """:return: how MuJoCo renders here; whether it does, the suites tell"""
    set_headless_backend()
    backend = os.environ.get("MUJOCO_GL")
    if backend == "disabled":
        return dict(backend="none, which images and videos need: apt install libegl1 libgl1-mesa-dri")
    return dict(backend=backend or "MuJoCo's own choice")


def suites(quick: bool) -> Facts:
    """
    :param quick: whether not to make environments
    :return: what is installed, and whether it works
    """
    found = {}
    for suite in SUITES.values():
        if quick or suite.version is None:
            found[suite.title] = suite.version or f"not installed: {suite.install}"
        else:
            found[suite.title] = f"{suite.version}, {examine(suite)[1]}"
    return found


def seconds_of(function: Callable[[], Any], limit: float) -> float:
    """
    :param function: function to measure, after one call that does not count
    :param limit: seconds after which no further call is begun
    :return: median of its times
    """
    function()
    times: list[float] = []
    while not times or sum(times) < limit:
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def expected_time(preset: str | None, device: str) -> Facts:
    """
    :param preset: name of a preset, None for the paper's settings
    :param device: device to measure on
    :return: what would be chosen for it, and how long it would take
    """
    n_envs = TDMPC2.presets.get(preset, {}).get("n_envs", 1) if preset else 1
    env = DummyVecEnv([lambda: IdleEnv(NUMBERS, ACTIONS)] * n_envs)
    given: Facts = dict(preset=preset, learning_starts=FILLED, pretrain_gradient_steps=0, buffer_size=10 * FILLED)
    with quiet():
        model = TDMPC2("MlpPolicy", env, device=device, seed=0, **given).learn(FILLED)
    network = model.policy.world_model
    plans = DECISIONS // n_envs
    updates = number_of_updates(DECISIONS, n_envs, model.train_freq, model.gradient_steps)  # type: ignore[arg-type]
    chosen = acceleration.choose_acceleration("auto", network, model.device, plans + updates)
    chosen = chosen._replace(threads=model.policy.acceleration.threads)
    model.policy.acceleration = chosen._replace(compiles=False)
    observation, started, used = env.reset(), time.perf_counter(), time.process_time()
    # On a GPU both wait for the result
    plan = seconds_of(lambda: model.predict(observation), SECONDS)  # type: ignore[arg-type]
    update = seconds_of(lambda: model.train(1, model.batch_size), SECONDS)
    total = plans * plan + updates * update
    share = (time.process_time() - used) / (time.perf_counter() - started)
    compiles = " (the default compiles a run of this length, which makes it shorter)" if chosen.compiles else ""
    found: Facts = dict(
        time=f"about {duration(total)}, not compiled{compiles}, without the environment's own time",
        frames=f"{2 * DECISIONS:,} in DMControl, {DECISIONS:,} in Gymnasium",
        seconds=round(total),
        plan_ms=round(1e3 * plan, 1),
        update_ms=round(1e3 * update, 1),
        environments=n_envs,
        updates=updates,
        parameters=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        device=str(get_device(device)),
        chosen_for_a_run_of_this_length=chosen.describe(),
    )
    if model.device.type == "cpu" and share < ENOUGH:
        found["busy"] = f"the measurement got {share:.0%} of a core, other programs the rest: alone it is faster"
    return found
