"""TD-MPC2."""

from sb3_mpc.tdmpc2.tdmpc2 import TDMPC2

__all__ = ["TDMPC2"]
