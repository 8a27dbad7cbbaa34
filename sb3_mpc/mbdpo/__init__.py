"""MBDPO."""

from sb3_mpc.mbdpo.mbdpo import MBDPO

__all__ = ["MBDPO"]
