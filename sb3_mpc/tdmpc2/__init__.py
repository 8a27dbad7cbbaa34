"""TD-MPC2."""

from sb3_mpc.common.policies.world_model_policy import CnnPolicy, MultiInputPolicy
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy as MlpPolicy
from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

__all__ = ["TDMPC2", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
