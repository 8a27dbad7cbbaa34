"""TD-M(PC)²."""

from sb3_mpc.common.policies.world_model_policy import CnnPolicy, MultiInputPolicy
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy as MlpPolicy
from sb3_mpc.tdmpc_square.tdmpc_square import TDMPCSquare

__all__ = ["TDMPCSquare", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
