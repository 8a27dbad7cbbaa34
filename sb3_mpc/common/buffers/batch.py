"""Training batches: windows of consecutive transitions."""

from typing import NamedTuple

import numpy as np
import torch as th


class SequenceBatch(NamedTuple):
    """
    B windows of H transitions, time first. Steps past the end of an episode have ``mask`` 0 and some finite values.

    :param observations: ``[H + 1, B, *shape]``, or a dict of such tensors
    :param actions: ``[H, B, A]`` in [-1, 1]
    :param rewards: ``[H, B, 1]``
    :param terminated: 1 where the transition ended the episode by termination, not by truncation ``[H, B, 1]``
    :param mask: 1 for transitions of the window's episode ``[H, B, 1]``
    :param plans: mean and standard deviation of the planned actions ``[2, H, B, A]``; None unless the buffer stores
        them
    :param buffer_index: rows and environments of the transitions in such a buffer ``[2, H, B]``; -1 in windows with a
        relabelled goal, whose plans must not be written back
    :param planned: whether there is a plan ``[H, B, 1]``; elsewhere ``plans`` means nothing, see :meth:`plans_or`. None
        if there is one everywhere
    """

    observations: th.Tensor | dict[str, th.Tensor]
    actions: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor
    mask: th.Tensor
    plans: th.Tensor | None = None
    buffer_index: np.ndarray | None = None
    planned: th.Tensor | None = None

    def plans_or(self, mean: th.Tensor | float, std: th.Tensor | float) -> tuple[th.Tensor, th.Tensor]:
        """
        :param mean: what to take where there is no plan, a number or ``[H, B, A]``
        :param std: likewise
        :return: mean and standard deviation of the planned actions ``[H, B, A]``
        """
        assert self.plans is not None, "the replay buffer stores plans"
        if self.planned is None:
            return self.plans[0], self.plans[1]
        return th.where(self.planned, self.plans[0], mean), th.where(self.planned, self.plans[1], std)

    @property
    def next_observations(self) -> th.Tensor | dict[str, th.Tensor]:
        """:return: next observations ``[H, B, *shape]``, under SB3's name"""
        if isinstance(self.observations, dict):
            return {key: part[1:] for key, part in self.observations.items()}
        return self.observations[1:]

    @property
    def dones(self) -> th.Tensor:
        """:return: ``terminated``, under SB3's name"""
        return self.terminated


def observed(mask: th.Tensor) -> th.Tensor:
    """
    :param mask: of a batch, 1 for each step that its window has ``[H, B, 1]``
    :return: 1 for each observation, the last one of an episode too, 0 for repetitions behind it ``[H + 1, B, 1]``
    """
    return th.cat([th.ones_like(mask[:1]), mask])
