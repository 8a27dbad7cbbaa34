"""Fac-TDMPC."""

from sb3_mpc.fac_tdmpc.fac_tdmpc import FacTDMPC
from sb3_mpc.fac_tdmpc.policies import FactoredCnnPolicy as CnnPolicy
from sb3_mpc.fac_tdmpc.policies import FactoredMultiInputPolicy as MultiInputPolicy
from sb3_mpc.fac_tdmpc.policies import FactoredPolicy as MlpPolicy

__all__ = ["CnnPolicy", "FacTDMPC", "MlpPolicy", "MultiInputPolicy"]
