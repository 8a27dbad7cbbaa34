"""
Time of one prediction by Fac-TDMPC's expert and student, at the sizes of its paper (Table 1): study "times" of
``sb3_mpc.zoo.studies.factored``.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_mpc import FacTDMPC
from sb3_mpc.fac_tdmpc.world_model import GroupedMLP

ACTIONS = {"reacher-three": 3, "hopper": 4, "fish": 5, "walker": 6, "quadruped": 12}  # of the paper's Table 1
Row = dict[str, Any]


def milliseconds(function: Callable[[], Any], runs: int) -> float:
    """
    :param function: function to measure
    :param runs: number of calls, after three that do not count
    :return: median time of a call
    """
    times = []
    with th.no_grad():
        for _ in range(runs + 3):
            started = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - started))
    return round(float(np.median(times[3:])), 3)


def group_networks(network: GroupedMLP) -> list[nn.Sequential]:
    """
    :param network: networks of all groups
    :return: the network of each group by itself
    """
    groups = []
    layers: list[Any] = list(network.layers)
    for index in range(layers[0].weight.shape[0]):
        parts: list[nn.Module] = []
        for layer in layers:
            linear = nn.Linear(*reversed(layer.weight.shape[1:]))
            linear.weight.data, linear.bias.data = layer.weight[index].detach(), layer.bias[index].detach()
            parts.append(linear)
            if layer.normed:
                parts += [nn.LayerNorm(linear.out_features), layer.activation]
        groups.append(nn.Sequential(*parts))
    return groups


def predictions(count: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any], list[Callable[[], Any]]]]:
    """
    :param count: number of action dimensions
    :return: predictions of 512 samples by expert, by student in one batch, and by each of its groups; untrained and of
        the paper's sizes
    """
    box = spaces.Box(-1, 1, (count,), np.float32)
    policy: Any = FacTDMPC.policy_aliases["MlpPolicy"](spaces.Box(-1, 1, (24,), np.float32), box, lambda _: 1e-4)
    expert, student = policy.world_model, policy.student
    z, action, members = th.rand(512, expert.latent_dim), th.rand(512, count), th.arange(2)
    blocks = th.rand(count, 512, student.latent_dim // count)
    actions = action.T.reshape(count, 512, 1)
    inputs = th.cat([blocks, actions], dim=-1)

    def each(*networks: GroupedMLP) -> list[Callable[[], Any]]:
        parts = zip(*(group_networks(network) for network in networks), strict=True)
        return [lambda x=x, own=own: [network(x) for network in own] for x, own in zip(inputs, parts, strict=True)]  # type: ignore[misc]

    return {
        "dynamics": (
            lambda: expert.next(z, action),
            lambda: student.next(blocks, actions),
            each(student.dynamics),
        ),
        "reward": (
            lambda: expert.reward(z, action),
            lambda: student.reward(blocks, actions),
            each(student.reward_head),
        ),
        "values": (
            lambda: expert.value(z, action, members),
            lambda: student.value(blocks, actions),
            each(*student.q_heads),
        ),
    }


def without_gradient(function: Callable[[], Any]) -> Any:
    """
    :param function: function to call in a thread, in which gradients are enabled at first
    :return: its result
    """
    with th.no_grad():
        return function()


def times(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: command line
    :return: a row for each number of action dimensions, network and number of threads. "separate" computes the groups'
        networks one by one, as many at once as there are threads: with a thread for each, this is the paper's Table 1,
        in which the expert has one thread.
    """
    available = th.get_num_threads()
    for name, count in ACTIONS.items():
        networks = predictions(count)
        for threads in sorted({1, available, count}):
            for network, (its, mine, groups) in networks.items():
                th.set_num_threads(threads)
                row: Row = dict(model=name, actions=count, network=network, threads=threads)
                row |= dict(expert_ms=milliseconds(its, args.runs), student_ms=milliseconds(mine, args.runs))
                th.set_num_threads(1)
                with ThreadPoolExecutor(threads) as pool:
                    separate = milliseconds(lambda: list(pool.map(without_gradient, groups)), args.runs)  # noqa: B023
                yield row | dict(separate_ms=separate)
        th.set_num_threads(available)
