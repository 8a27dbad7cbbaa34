"""BMPC."""

from sb3_mpc.bmpc.bmpc import BMPC

__all__ = ["BMPC"]
