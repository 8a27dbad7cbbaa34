"""Model-based reinforcement learning with planning, as Stable-Baselines3 algorithm classes."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_mpc.bmpc import BMPC as BMPC
    from sb3_mpc.common.algorithm import WorldModelAlgorithm
    from sb3_mpc.fac_tdmpc import FacTDMPC as FacTDMPC
    from sb3_mpc.mbdpo import MBDPO as MBDPO
    from sb3_mpc.tdmpc2 import TDMPC2 as TDMPC2
    from sb3_mpc.tdmpc_square import TDMPCSquare as TDMPCSquare

    ALGORITHMS: dict[str, type[WorldModelAlgorithm]]

__version__ = "0.1.0"

__all__ = ["BMPC", "MBDPO", "TDMPC2", "FacTDMPC", "TDMPCSquare"]

#: The one list of the methods: name in files and on the command line, which is also the name of the folder, and class.
#: A class is imported at its first use, so that `import sb3_mpc.envs` does not import PyTorch; ``ALGORITHMS`` imports
#: all of them.
METHODS = {
    "tdmpc2": "TDMPC2",
    "tdmpc_square": "TDMPCSquare",
    "bmpc": "BMPC",
    "mbdpo": "MBDPO",
    "fac_tdmpc": "FacTDMPC",
}


def __getattr__(name: str) -> Any:
    if name == "ALGORITHMS":
        return {key: __getattr__(class_name) for key, class_name in METHODS.items()}
    for key, class_name in METHODS.items():
        if name == class_name:
            return getattr(import_module(f"sb3_mpc.{key}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*METHODS.values(), "ALGORITHMS", "METHODS", "__version__"])


class _Clone:
    """In a clone that is used without being installed, ``envs/`` and ``zoo/`` are beside this folder, not in it."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        root = Path(__file__).resolve().parents[1]
        if name not in ("sb3_mpc.envs", "sb3_mpc.zoo") or not (root / "pyproject.toml").is_file():
            return None
        folder = root / name.removeprefix("sb3_mpc.")
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


sys.meta_path.insert(0, _Clone)  # first, so that a clone never takes those of another one that is installed
