"""BMPC."""

from sb3_mpc.bmpc.bmpc import BMPC
from sb3_mpc.common.policies.world_model_policy import CnnPolicy, MultiInputPolicy
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy as MlpPolicy

__all__ = ["BMPC", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
