"""Planning with learned world models, as Stable-Baselines3 algorithms."""

from sb3_mpc.tdmpc2 import TDMPC2

__version__ = "0.1.0"

__all__ = ["TDMPC2", "__version__"]
