"""
Trained agents, their hyper-parameters and the command line to train and watch them.

``load("tdmpc2", "dmc/cartpole-swingup-v0")`` gives a trained agent, ``available()`` tells which there are.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_mpc.zoo.agents import available as available
    from sb3_mpc.zoo.agents import load as load

__all__ = ["available", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loaded at first use, as in sb3_mpc
        return getattr(import_module("sb3_mpc.zoo.agents"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
