"""MBDPO."""

from sb3_mpc.common.policies.world_model_policy import CnnPolicy, MultiInputPolicy
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy as MlpPolicy
from sb3_mpc.mbdpo.mbdpo import MBDPO

__all__ = ["MBDPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
