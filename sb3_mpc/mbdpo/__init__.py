"""MBDPO."""

from sb3_mpc.common.policies import CnnPolicy, MultiInputPolicy
from sb3_mpc.common.policies import WorldModelPolicy as MlpPolicy
from sb3_mpc.mbdpo.mbdpo import MBDPO

__all__ = ["MBDPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
