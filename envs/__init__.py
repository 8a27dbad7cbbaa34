"""
Benchmark suites as Gymnasium environments that SB3 accepts as they are.

Importing this package registers the ids and imports no simulator; a suite is imported when one of its environments
is made::

    import gymnasium as gym
    import sb3_mpc.envs

    env = gym.make("dmc/walker-walk-v0")
"""

from sb3_mpc.envs import dmc

dmc.register()
