"""Planning with learned world models, as Stable-Baselines3 algorithms."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_mpc.tdmpc2 import TDMPC2 as TDMPC2

__version__ = "0.1.0"

__all__ = ["TDMPC2"]

# Loaded at first use, so that `import sb3_mpc.envs` does not wait for PyTorch
_MODULES = {"TDMPC2": "sb3_mpc.tdmpc2"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
