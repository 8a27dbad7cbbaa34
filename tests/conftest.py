"""Fixtures and settings of all tests."""

import os

# The networks of the tests are tiny, and the workers of pytest-xdist share the cores: before PyTorch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from tests.agents import ALGORITHMS


@pytest.fixture(params=ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def algorithm(request: pytest.FixtureRequest) -> type[OffPolicyAlgorithm]:
    """:return: each of the algorithm classes in turn"""
    return request.param
