"""
Benchmark suites as Gymnasium environments that SB3 accepts as they are.

Importing this package registers the ids and imports no simulator; a suite is imported when one of its environments
is made::

    import gymnasium as gym
    import sb3_mpc.envs

    env = gym.make("dmc/walker-walk-v0")

:func:`make_multitask` puts several tasks side by side, for one agent.

``python -m sb3_mpc.envs`` lists suites and tasks, ``python -m sb3_mpc.envs --check`` tests the installed suites.
"""

from typing import TYPE_CHECKING, Any

from sb3_mpc.envs import dmc, humanoid_bench, maniskill, metaworld, myosuite
from sb3_mpc.envs.registry import Suite

if TYPE_CHECKING:
    from sb3_mpc.envs.multitask import make_multitask as make_multitask

#: The suites by the namespace of their ids
SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE for module in (dmc, humanoid_bench, myosuite, maniskill, metaworld)
}

for _suite in SUITES.values():
    _suite.register()


def __getattr__(name: str) -> Any:
    if name == "make_multitask":  # not before it is used: it needs PyTorch, which takes seconds to import
        from sb3_mpc.envs.multitask import make_multitask

        return make_multitask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
