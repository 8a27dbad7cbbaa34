"""Sets of tasks for ``benchmark``: chosen before any run, by their place in the papers and not by what is learned."""

_DMC = """
    acrobot-swingup cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cheetah-jump
    cheetah-run cheetah-run-back cheetah-run-backwards cheetah-run-front cup-catch cup-spin finger-spin finger-turn-easy
    finger-turn-hard fish-swim hopper-hop hopper-hop-backwards hopper-stand pendulum-spin pendulum-swingup quadruped-run
    quadruped-walk reacher-easy reacher-hard reacher-three-easy reacher-three-hard walker-run walker-run-backwards
    walker-stand walker-walk walker-walk-backwards
"""
_METAWORLD = """
    reach push pick-place door-open drawer-open drawer-close button-press-topdown peg-insert-side window-open
    window-close
"""
_EIGHT = """
    cartpole-swingup-sparse cheetah-run cup-catch finger-turn-hard hopper-stand quadruped-walk reacher-hard walker-run
"""
_DEVELOPMENT = "acrobot-swingup cheetah-run finger-turn-hard hopper-stand reacher-easy walker-run"

#: Name on the command line -> ids
SUITES: dict[str, list[str]] = {
    # TD-MPC2's 39 tasks without the seven of dog and humanoid, which its paper trains for 14M frames
    "dmc32": [f"dmc/{name}-v0" for name in _DMC.split()],
    # Eight of them that differ: dense and sparse rewards, one to twelve actions, easy and hard; to compare methods
    "dmc8": [f"dmc/{name}-v0" for name in _EIGHT.split()],
    "dmc6": [f"dmc/{name}-v0" for name in _DEVELOPMENT.split()],  # to choose improvements by
    "gym6": [f"{n}-v5" for n in ("InvertedPendulum", "Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid")],
    "metaworld10": [f"metaworld/{name}-v3" for name in _METAWORLD.split()],  # the tasks of MT10
    "myo3": [f"myosuite/{name}-v0" for name in ("key-turn", "reach", "pose")],
    "maniskill2": ["maniskill/PushCube-v1", "maniskill/pick-cube-v1"],
    "humanoid3": [f"humanoid-bench/{name}-v0" for name in ("h1-stand", "h1-walk", "h1hand-stand")],
}
