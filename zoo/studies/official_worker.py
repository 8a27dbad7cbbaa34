"""
Times of an official implementation, measured by its own Python: started by :mod:`sb3_mpc.zoo.studies.official`.

Runs without this package: it needs the official code's requirements (torch, tensordict, PyYAML) alone. The code is
copied into a temporary folder, where its GPU is replaced by the CPU: ``cuda:0`` by ``cpu``, and Adam without
``capturable``, which CPUs do not have. Nothing else is changed.
"""

import argparse
import contextlib
import importlib
import json
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
import yaml

# Folder of the code, of its configuration, module and class
LAYOUTS = {
    "tdmpc2": ("tdmpc2", "tdmpc2/config.yaml", "tdmpc2", "TDMPC2"),
    "bmpc": ("bmpc", "bmpc/config.yaml", "bmpc", "BMPC"),
    "mbdpo": ("MBDPO", "cfgs/config.yaml", "mbdpo", "MBDPO"),
}
REPLACED = (("cuda:0", "cpu"), ("capturable=True", "capturable=False"))
# Updates between two plans of BMPC's replay, and windows that are planned again
REANALYZE_INTERVAL, REANALYZE_WINDOWS = 10, 20
REWARD = 1.0
EPISODE_STEPS = 500


class Configuration(dict[str, Any]):
    """Settings that are read as attributes, as the official code does."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def number(value: Any) -> Any:
    """
    :param value: value of a YAML file, in which ``3e-4`` and ``10_000_000`` are texts
    :return: the number, or what it was
    """
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value) if re.search("[.eE]", value) else int(value)
    return value


def moved_to_cpu(source: str, method: str, folder: str) -> Path:
    """
    :param source: checkout of the official code
    :param method: key of ``LAYOUTS``
    :param folder: temporary folder for the copy
    :return: folder of the changed code, to be imported from
    """
    code = Path(folder) / "code"
    shutil.copytree(Path(source) / LAYOUTS[method][0], code, ignore=shutil.ignore_patterns("*.xml", "*.gif", "*.png"))
    for file in code.rglob("*.py"):
        text = file.read_text()
        for old, new in REPLACED:
            text = text.replace(old, new)
        file.write_text(text)
    return code


def make_agent(args: argparse.Namespace, folder: str) -> tuple[Any, Configuration]:
    """
    :param args: command line
    :param folder: temporary folder
    :return: the official agent for one task with vectors as observations
    """
    sys.path.insert(0, str(moved_to_cpu(args.source, args.method, folder)))
    _, file, module, name = LAYOUTS[args.method]
    settings = {key: number(value) for key, value in yaml.safe_load((Path(args.source) / file).read_text()).items()}
    cfg = Configuration(settings)
    sizes = importlib.import_module("common").MODEL_SIZE
    cfg.update(sizes[args.size])
    cfg.update(
        model_size=args.size, task="walker-walk", tasks=["walker-walk"], multitask=False, task_dim=0, obs="state",
        obs_shape={"state": (args.obs,)}, action_dim=args.act, episode_length=EPISODE_STEPS, episodic=False,
        compile=args.mode == "compiled", bin_size=(cfg.vmax - cfg.vmin) / (cfg.num_bins - 1), device="cpu",
    )  # fmt: skip
    agent = getattr(importlib.import_module(module), name)(cfg)
    return agent, cfg


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """
    :param function: function to measure, after three calls that do not count
    :param repeats: number of measurements
    :return: milliseconds of each call
    """
    times = []
    for i in range(repeats + 3):
        started = time.perf_counter()
        function()
        if i >= 3:
            times.append(1e3 * (time.perf_counter() - started))
    return times


def measure(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """
    :param args: command line
    :param folder: temporary folder
    :return: milliseconds of plans and updates, and the memory of the process
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # libraries alone
    agent, cfg = make_agent(args, folder)
    batch = (
        th.randn(cfg.horizon + 1, cfg.batch_size, args.obs),
        th.rand(cfg.horizon, cfg.batch_size, args.act) * 2 - 1,
        th.full((cfg.horizon, cfg.batch_size, 1), REWARD),
    )
    observation = th.randn(args.obs)
    if args.method == "bmpc":
        planned = th.cat([th.zeros_like(batch[1]), th.ones_like(batch[1])], -1)
        last = planned
    else:
        last = th.zeros(cfg.horizon, cfg.batch_size, 1)

    def update() -> None:
        agent._update(*batch, last)

    @th.no_grad()
    def replan() -> None:
        states = batch[0][:-1, :REANALYZE_WINDOWS].reshape(-1, args.obs)
        agent.plan(states, len(states), t0=True, horizon=cfg.reanalyze_horizon, update_prev_mean=False, reanalyze=True)

    started = time.perf_counter()
    agent.act(observation, t0=True)
    agent.act(observation, t0=False)
    update()
    result: dict[str, Any] = dict(first_call_s=round(time.perf_counter() - started, 1))
    result["plan_ms"] = timed(lambda: agent.act(observation, t0=False, eval_mode=True), args.repeats)
    result["update_ms"] = timed(update, args.repeats)
    if args.method == "bmpc":
        # A fifth of the repeats: one call plans 60 states
        replans = timed(replan, max(3, args.repeats // 5))
        result["replan_ms"] = replans
    started = time.perf_counter()
    for _ in range(args.repeats):
        agent.act(observation, t0=False)
        update()
    result["decision_ms"] = [1e3 * (time.perf_counter() - started) / args.repeats]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.update(peak_rss_mb=round(peak / 1024), beyond_start_mb=round((peak - before) / 1024))
    result.update(threads=th.get_num_threads(), torch=str(th.__version__))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--method", choices=LAYOUTS, required=True)
    parser.add_argument("--mode", choices=("eager", "compiled"), required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--obs", type=int, required=True)
    parser.add_argument("--act", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    th.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(sys.stderr):
        Path(arguments.output).write_text(json.dumps(measure(arguments, temporary)))
