"""
Speed of planning and learning on this machine: ``python -m sb3_mpc.zoo bench``.

Every mode is measured in a separate process, so that its peak memory is measured separately. Times are wall-clock
times: stop other programs that use the machine.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import TDMPC2
from sb3_mpc.agents.provenance import git_commit, package_versions
from sb3_mpc.common.execution import acceleration
from sb3_mpc.common.execution.processor import capabilities
from sb3_mpc.zoo.train import check_options

MODES = ("eager", "compiled", "compiled-bfloat16")
EPISODE_STEPS = 500
# Transitions in the replay buffer while it is measured
FILLED = 1_000


class IdleEnv(gym.Env):
    """
    An environment that takes almost no time: constant observations and rewards, episodes of 500 steps.

    :param observation_dim: size of the observations
    :param action_dim: size of the actions
    """

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        self.observation_space = spaces.Box(-1, 1, (observation_dim,), np.float32)
        self.action_space = spaces.Box(-1, 1, (action_dim,), np.float32)
        self._observation = np.linspace(-1, 1, observation_dim, dtype=np.float32)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """See Gymnasium."""
        super().reset(seed=seed)
        self._step = 0
        return self._observation.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """See Gymnasium."""
        self._step += 1
        return self._observation.copy(), 1.0, False, self._step == EPISODE_STEPS, {}


def timed(function: Callable[[], Any], device: th.device, repeats: int) -> list[float]:
    """
    :param function: function to measure, after three calls that do not count
    :param device: device that it uses; its queue is waited for
    :param repeats: number of measurements
    :return: milliseconds of each call
    """
    milliseconds = []
    for i in range(repeats + 3):
        if device.type == "cuda":
            th.cuda.synchronize()
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            th.cuda.synchronize()
        if i >= 3:
            milliseconds.append(1e3 * (time.perf_counter() - started))
    return milliseconds


def summary(milliseconds: list[float]) -> dict[str, float]:
    """
    :param milliseconds: measurements
    :return: their median and 95th percentile
    """
    return {f"{name}_ms": round(float(np.percentile(milliseconds, q)), 3) for name, q in (("median", 50), ("p95", 95))}


def decisions_per_second(env: gym.Env, settings: dict[str, Any], decisions: int) -> float:
    """
    :param env: environment
    :param settings: arguments of the agent
    :param decisions: number of decisions, each with one update
    :return: decisions per second, without the first ones, which compile
    """
    model = TDMPC2("MlpPolicy", env, learning_starts=100, **settings)
    model.learn(105)  # compiles
    started = time.perf_counter()
    model.learn(decisions, reset_num_timesteps=False)
    return round(decisions / (time.perf_counter() - started), 2)


def measure(mode: str, args: argparse.Namespace) -> dict[str, Any]:
    """
    :param mode: one of ``MODES``
    :param args: command line
    :return: all results of the mode
    """
    if args.threads:
        th.set_num_threads(args.threads)
    # This process measures one mode only, which decides whether plans are in bfloat16, whatever the processor has
    acceleration.has_bfloat16_units = lambda device: mode.endswith("bfloat16")
    settings: dict[str, Any] = dict(
        compile=mode != "eager",
        device=args.device,
        policy_kwargs=dict(model_size=args.model_size),
        pretrain_gradient_steps=0,
        seed=0,
    )
    env = IdleEnv(args.obs, args.act)
    model = TDMPC2("MlpPolicy", env, learning_starts=FILLED, **settings).learn(FILLED)
    started = time.perf_counter()
    model.predict(env.reset()[0])
    model.train(1, model.batch_size)
    first = time.perf_counter() - started
    result: dict[str, Any] = dict(mode=mode, threads=th.get_num_threads(), first_call_s=round(first, 1), plan={})
    rng = np.random.default_rng(0)
    for n_envs in args.n_envs:
        observations = rng.standard_normal((n_envs, args.obs)).astype(np.float32)

        def plan(observations: np.ndarray = observations) -> None:
            model.policy.predict(observations, deterministic=True)

        result["plan"][n_envs] = summary(timed(plan, model.device, args.repeats))
    result["update"] = summary(timed(lambda: model.train(1, model.batch_size), model.device, args.repeats))
    result["sample"] = summary(timed(lambda: model.replay_buffer.sample(model.batch_size), model.device, args.repeats))
    result["decisions_per_s"] = {"zero-cost": decisions_per_second(env, settings, args.repeats)}
    if find_spec("dm_control") is not None:
        walker = gym.make("dmc/walker-walk-v0")
        result["decisions_per_s"]["walker-walk"] = decisions_per_second(walker, settings, args.repeats)
    result["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if model.device.type == "cuda":
        result["peak_cuda_mb"] = round(th.cuda.max_memory_allocated() / 2**20)
    return result


def machine(device: str) -> dict[str, Any]:
    """
    :param device: device that is measured
    :return: description of machine and software, for the report
    """
    cpu = capabilities()
    return dict(
        cpu=cpu.get("cpu_name", platform.processor()),
        cores=multiprocessing.cpu_count(),
        instructions=[name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if cpu.get(name)],
        gpu=th.cuda.get_device_name() if th.cuda.is_available() else None,
        device=device,
        python=platform.python_version(),
        commit=git_commit() or "unknown",
        **package_versions(),
    )


def table(results: list[dict[str, Any]]) -> str:
    """
    :param results: results of all modes
    :return: a table, one row per measurement and one column per mode
    """
    rows: dict[str, list[str]] = {"": [result["mode"] for result in results]}
    for result in results:
        for n_envs, times in result["plan"].items():
            name = f"plan, {n_envs} {'environments' if n_envs > 1 else 'environment'} (median / p95)"
            rows.setdefault(name, []).append(f"{times['median_ms']:.1f} / {times['p95_ms']:.1f} ms")
        for name in ("update", "sample"):
            times = result[name]
            rows.setdefault(f"{name} (median / p95)", []).append(f"{times['median_ms']:.2f} / {times['p95_ms']:.2f} ms")
        for name, value in result["decisions_per_s"].items():
            rows.setdefault(f"acting and learning, {name}", []).append(f"{value:.2f} decisions/s")
        rows.setdefault("first plan and update", []).append(f"{result['first_call_s']:.1f} s")
        rows.setdefault("peak memory of the process", []).append(f"{result['peak_rss_mb']} MB")
        if "peak_cuda_mb" in result:
            rows.setdefault("peak memory on the GPU", []).append(f"{result['peak_cuda_mb']} MB")
    return "\n".join(f"{name:<40}" + "".join(f"{cell:>24}" for cell in cells) for name, cells in rows.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of the command
    """
    parser.add_argument("--model-size", type=int, default=5, help="millions of parameters: 1, 5, 19, 48 or 317")
    parser.add_argument("--obs", type=int, default=24, help="size of the observations")
    parser.add_argument("--act", type=int, default=6, help="size of the actions")
    parser.add_argument("--n-envs", type=int, nargs="+", default=[1, 16, 64], help="environments planned together")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, help="by default all, bfloat16 only where the processor has units for it"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch, its own choice if 0")
    parser.add_argument("--repeats", type=int, default=20, help="measurements of each kind")
    parser.add_argument("--output", type=Path, help="JSON file to write")


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    check_options(args, obs=1, act=1, repeats=1, n_envs=1)
    context = multiprocessing.get_context("spawn")
    results = []
    modes = MODES if acceleration.has_bfloat16_units(get_device(args.device)) else MODES[:2]
    for mode in args.modes or modes:
        print(f"Measuring {mode}" + (": compiling takes a minute or two" if mode != "eager" else ""), flush=True)
        with context.Pool(1) as pool:
            results.append(pool.apply(measure, (mode, args)))
    settings = {name: value for name, value in vars(args).items() if name not in ("output", "command", "run")}
    about = machine(args.device)
    report = dict(machine=about, settings=settings, results=results)
    print(f"\nTDMPC2, {args.model_size}M parameters, {about['cpu']}, {results[0]['threads']} threads")
    print(table(results))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")
