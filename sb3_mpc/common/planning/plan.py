"""Input and output of the planner."""

from typing import NamedTuple

import torch as th


class PlanNoise(NamedTuple):
    """
    Random numbers of one plan: J iterations, horizon H, E environments, N samples of which P are the prior's, K elites.

    Random numbers with an environment dimension of size one are shared by all environments.

    :param proposals: normal draws of the prior's rollouts ``[H, E, P, A]``
    :param samples: normal draws of the sampled sequences ``[J, H, E, N - P, A]``
    :param terminal: normal draws of the terminal actions ``[J, E, N, A]``
    :param members: pair of value networks of each iteration ``[J, 2]``
    :param selection: exponential draws that select one elite ``[E, K]``; None for the mean of the elites
    :param exploration: normal draws added to the executed action ``[E, A]``; None for no noise
    :param start: normal draws added to the sequences that a diffusion starts from ``[H, E, A]``; None for no noise
    """

    proposals: th.Tensor
    samples: th.Tensor
    terminal: th.Tensor
    members: th.Tensor
    selection: th.Tensor | None = None
    exploration: th.Tensor | None = None
    start: th.Tensor | None = None

    def to(self, device: th.device) -> "PlanNoise":
        """
        :param device: device of the planner
        :return: the same numbers on that device
        """
        return PlanNoise(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


class Plan(NamedTuple):
    """
    Outcome of a plan for E environments.

    :param action: action to execute ``[E, A]`` in [-1, 1]
    :param mean: mean of the final distribution, the warm start of the next plan ``[E, H, A]``
    :param std: its standard deviation ``[E, H, A]``
    :param elite_action: first action of the chosen elite, before exploration noise ``[E, A]``
    :param elite_value: its estimated return ``[E]``
    """

    action: th.Tensor
    mean: th.Tensor
    std: th.Tensor
    elite_action: th.Tensor
    elite_value: th.Tensor
