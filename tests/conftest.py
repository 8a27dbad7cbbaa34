"""Fixtures of all tests."""

import pytest
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from tests.agents import ALGORITHMS


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models of the tests are too small for more."""
    th.set_num_threads(1)


@pytest.fixture(params=ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def algorithm(request: pytest.FixtureRequest) -> type[OffPolicyAlgorithm]:
    """:return: each of the algorithm classes in turn"""
    return request.param
