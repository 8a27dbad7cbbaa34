"""TD-MPC2."""

from sb3_mpc.common.policies import CnnPolicy, MultiInputPolicy
from sb3_mpc.common.policies import WorldModelPolicy as MlpPolicy
from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

__all__ = ["TDMPC2", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
