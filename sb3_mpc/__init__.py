"""Planning with learned world models, as Stable-Baselines3 algorithms."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_mpc.bmpc import BMPC as BMPC
    from sb3_mpc.fac_tdmpc import FacTDMPC as FacTDMPC
    from sb3_mpc.mbdpo import MBDPO as MBDPO
    from sb3_mpc.tdmpc2 import TDMPC2 as TDMPC2
    from sb3_mpc.tdmpc_square import TDMPCSquare as TDMPCSquare

__version__ = "0.1.0"

__all__ = ["BMPC", "MBDPO", "TDMPC2", "FacTDMPC", "TDMPCSquare"]

# Loaded at first use, so that `import sb3_mpc.envs` does not wait for PyTorch
_MODULES = {
    "BMPC": "sb3_mpc.bmpc",
    "FacTDMPC": "sb3_mpc.fac_tdmpc",
    "MBDPO": "sb3_mpc.mbdpo",
    "TDMPC2": "sb3_mpc.tdmpc2",
    "TDMPCSquare": "sb3_mpc.tdmpc_square",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
