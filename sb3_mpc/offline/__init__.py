"""Data sets on disk: recorded transitions to learn from without acting, or beside it."""

from sb3_mpc.offline.dataset import Dataset as Dataset
from sb3_mpc.offline.merging import merge as merge

__all__ = ["Dataset", "merge"]
