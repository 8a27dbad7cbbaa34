"""Fac-TDMPC."""

from sb3_mpc.fac_tdmpc.fac_tdmpc import FacTDMPC

__all__ = ["FacTDMPC"]
