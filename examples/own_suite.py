"""
A suite of your own: ids of Gymnasium for the tasks of one simulator, with the interface of the suites of this package.

This module is imported by its name: ``gym.make("own_suite:own-suite/reach-v0")`` where Python finds it.
"""

import gymnasium as gym
import numpy as np

from sb3_mpc.envs.registry import Suite, Task, frames_for_a_window
from sb3_mpc.envs.wrappers import ControlInterface, PixelObservation, RenderedEnv

SUITE = Suite(
    title="Own suite",
    module="own_suite",  # the ids begin with "own-suite/"
    package="numpy",  # the simulator: what is imported, under which name it is installed, and how
    distribution="numpy",
    install="pip install numpy",
    metric="return, at most 100",
    protocol="action repeat 2, 50 decisions",
    sample="reach-v0",
    tasks={
        "reach-v0": Task(50, {"radius": 0.2}),
        "reach-precisely-v0": Task(50, {"radius": 0.05}),
        "reach-pixels-v0": Task(50, {"radius": 0.2, "obs": "pixels"}),
    },
)
SUITE.register()


class Reach(RenderedEnv):
    """A point in a square, moved by its action and rewarded within ``radius`` of the center."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # of single steps

    def __init__(self, radius: float, render_mode: str | None, width: int, height: int) -> None:
        super().__init__(render_mode, width, height)
        self.radius, self.position = radius, np.zeros(2)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.action_space = gym.spaces.Box(-0.05, 0.05, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        """Start anywhere."""
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1.0, 1.0, 2)
        return self.position.copy(), {}

    def step(self, action):
        """Move; the time limit is that of the task."""
        self.position = np.clip(self.position + action, -1.0, 1.0)
        near = bool(np.linalg.norm(self.position) < self.radius)
        return self.position.copy(), float(near), False, False, {"success": near}

    def frame(self, height: int, width: int) -> np.ndarray:
        """Draw the point, bright, and the goal, dark: uint8 [height, width, 3]."""
        x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        picture = 80 * (np.hypot(x, y) < self.radius)
        picture[np.hypot(x - self.position[0], y - self.position[1]) < 0.1] = 255
        return np.repeat(picture[..., None], 3, axis=2).astype(np.uint8)


@frames_for_a_window
def make(radius, obs="state", action_repeat=2, render_mode=None, width=384, height=384) -> gym.Env:
    """What ``gym.make`` calls with the arguments of a task and those of the user."""
    env = ControlInterface(Reach(radius, render_mode, width, height), action_repeat)
    return PixelObservation(env) if obs == "pixels" else env
