"""TD-M(PC)²."""

from sb3_mpc.tdmpc_square.tdmpc_square import TDMPCSquare

__all__ = ["TDMPCSquare"]
