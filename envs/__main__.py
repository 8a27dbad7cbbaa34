"""
``python -m sb3_mpc.envs`` lists the suites and their tasks; ``python -m sb3_mpc.envs dmc`` makes each task of a suite
and adds the sizes of observations and actions; ``--check`` makes, steps and renders one task of every installed suite.
"""

import argparse
import contextlib
import io
import time
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_mpc.envs import SUITES
from sb3_mpc.envs.registry import Suite


def main() -> int:
    """:return: the exit status: 1 if an installed suite does not work"""
    parser = argparse.ArgumentParser(prog="python -m sb3_mpc.envs", description=__doc__)
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(SUITES)}; all if none is given", metavar="SUITE")
    parser.add_argument("--check", action="store_true", help="make, step and render one task of every installed suite")
    args = parser.parse_args()
    for name in args.suite:
        if name not in SUITES:
            parser.error(f'There is no suite "{name}": use {", ".join(SUITES)}.')
    suites = [SUITES[name] for name in args.suite or SUITES]
    if args.check:
        failed = [suite for suite in suites if not check(suite)]
        return 1 if failed else 0
    for suite in suites:
        describe(suite)
        if args.suite and suite.version:
            list_with_sizes(suite)
        else:
            list_names(suite)
    return 0


def describe(suite: Suite) -> None:
    """Print what a suite is and whether it is installed."""
    state = f"{suite.distribution} {suite.version}" if suite.version else f"not installed: {suite.install}"
    print(f"\n{suite.title} ({len(suite.tasks)} ids): {state}")
    print(f"  protocol: {suite.protocol}\n  metric: {suite.metric}")


def list_names(suite: Suite) -> None:
    """Print the ids of a suite by the length of their episodes in decisions."""
    by_length: dict[int, list[str]] = {}
    for name, task in suite.tasks.items():
        by_length.setdefault(task.decisions, []).append(f"{suite.name}/{name}")
    for decisions, ids in sorted(by_length.items()):
        print(f"  episodes of {decisions} decisions:")
        for task_id in sorted(ids):
            print(f"    {task_id}")


def list_with_sizes(suite: Suite) -> None:
    """Make every task of a suite and print its sizes, or why it cannot be made."""
    print(f"  {'id':<56} {'observation':>12} {'action':>7} {'decisions':>10}  metric")
    for name, task in suite.tasks.items():
        task_id = f"{suite.name}/{name}"
        try:
            with quiet():
                env = gym.make(task_id)
        except Exception as error:
            print(f"  {task_id:<56} {error}")
            continue
        observation, action = (
            "x".join(map(str, space.shape or ())) for space in (env.observation_space, env.action_space)
        )
        print(f"  {task_id:<56} {observation:>12} {action:>7} {task.decisions:>10}  {suite.metric}", flush=True)
        env.close()


def check(suite: Suite) -> bool:
    """
    Test a suite and print whether it works, with the error if not.

    :param suite: the suite
    :return: False if it is installed and does not work
    """
    works, result = examine(suite)
    print(
        f"{suite.title}: {result}" if suite.version is None else f"{suite.title} {suite.version}: {result}", flush=True
    )
    return works


def examine(suite: Suite) -> tuple[bool, str]:
    """
    :param suite: the suite
    :return: False if it is installed and does not work, and what was found; failed rendering is tolerated, since states
        do not need it
    """
    if suite.version is None:
        return True, f"not installed: {suite.install}"
    task_id = f"{suite.name}/{suite.sample}"
    try:
        with quiet():
            env = gym.make(task_id, render_mode="rgb_array")
            env.reset(seed=0)
            start, steps = time.perf_counter(), 20
            for _ in range(steps):
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                if not np.isfinite(float(reward)):
                    raise RuntimeError(f"the reward is {reward}")
                if terminated or truncated:
                    env.reset()
            speed = steps / (time.perf_counter() - start)
    except Exception as error:
        return False, f"{task_id} fails: {error}"
    try:
        with quiet():
            frame: Any = env.render()
        rendering = "renders" if isinstance(frame, np.ndarray) and frame.std() > 0 else "renders only one colour"
    except Exception as error:
        rendering = f"works with states but does not render: {error}"
    with quiet():
        env.close()
    return True, f"{task_id} runs, {speed:.0f} decisions/s; {rendering}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output and the warnings of simulators."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    raise SystemExit(main())
