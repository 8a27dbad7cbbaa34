"""
The DeepMind Control Suite: ``dmc/<domain>-<task>-v0``, and ``dmc/<domain>-<task>-pixels-v0`` for images.

The protocol is that of the TD-MPC2 papers: every action is repeated twice, and an episode lasts 500 decisions, which
are 1000 steps of dm_control. It ends truncated; only the two lqr tasks ever terminate.

All 39 tasks of TD-MPC2 are here: 28 of the suite, and the eleven that TD-MPC2 adds to it, such as ``cheetah-jump``.
"""

import difflib
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_mpc.envs.gl import explain_missing_gl, set_headless_backend
from sb3_mpc.envs.registry import Suite, Task, frames_for_a_window
from sb3_mpc.envs.wrappers import ControlInterface, PixelObservation, RenderedEnv

# dm_control's time limits all amount to this number of its steps (lqr alone has none and gets the same).
EPISODE_STEPS = 1000
ACTION_REPEAT = 2

# A static copy of dm_control.suite.ALL_TASKS, so that the ids can be registered without importing dm_control.
_DOMAINS = {
    "acrobot": "swingup swingup_sparse",
    "ball_in_cup": "catch",
    "cartpole": "balance balance_sparse swingup swingup_sparse two_poles three_poles",
    "cheetah": "run",
    "dog": "stand walk trot run fetch",
    "finger": "spin turn_easy turn_hard",
    "fish": "upright swim",
    "hopper": "stand hop",
    "humanoid": "stand walk run run_pure_state",
    "humanoid_CMU": "stand walk run",
    "lqr": "lqr_2_1 lqr_6_2",
    "manipulator": "bring_ball bring_peg insert_ball insert_peg",
    "pendulum": "swingup",
    "point_mass": "easy hard",
    "quadruped": "walk run escape fetch",
    "reacher": "easy hard",
    "stacker": "stack_2 stack_4",
    "swimmer": "swimmer6 swimmer15",
    "walker": "stand walk run",
}

# The tasks that TD-MPC2 adds to it; they are defined in dmc_tasks.py.
_ADDED = {
    "ball_in_cup": "spin",
    "cheetah": "run_backwards run_front run_back jump",
    "hopper": "hop_backwards",
    "pendulum": "spin",
    "reacher": "three_easy three_hard",
    "walker": "walk_backwards run_backwards",
}

#: Task name as in the ids -> domain and task as dm_control names them
TASKS: dict[str, tuple[str, str]] = {
    f"{domain}-{task}".replace("_", "-"): (domain, task)
    for domains in (_DOMAINS, _ADDED)
    for domain, tasks in domains.items()
    for task in tasks.split()
}
# The names that the papers use
TASKS["cup-catch"] = TASKS["ball-in-cup-catch"]
TASKS["cup-spin"] = TASKS["ball-in-cup-spin"]


SUITE = Suite(
    title="DMControl",
    module="sb3_mpc.envs.dmc",
    package="dm_control",
    distribution="dm-control",
    install='pip install -e ".[dmc]" in your clone of sb3-mpc',
    metric="return, at most 1000",
    protocol="action repeat 2, 500 decisions",
    sample="walker-walk-v0",
    tasks={
        f"{task}{suffix}-v0": Task(EPISODE_STEPS // ACTION_REPEAT, {"task": task, "obs": obs})
        for task in TASKS
        for suffix, obs in (("", "state"), ("-pixels", "pixels"))
    },
)


@frames_for_a_window
def make(
    task: str,
    obs: Literal["state", "pixels"] = "state",
    action_repeat: int = ACTION_REPEAT,
    render_mode: str | None = None,
    width: int = 384,
    height: int = 384,
    camera: int | None = None,
) -> gym.Env:
    """
    Make an environment without the time limit of ``gym.make``, which passes its keyword arguments on to here.

    The time limit counts decisions: give ``gym.make`` both or neither of ``action_repeat`` and ``max_episode_steps``,
    as in ``gym.make("dmc/walker-walk-v0", action_repeat=4, max_episode_steps=250)``.

    :param task: a name of ``TASKS``, such as ``"walker-walk"``
    :param obs: ``"state"`` for float32 vectors in dm_control's own order, ``"pixels"`` for the last three frames,
        uint8 [9, 64, 64]
    :param action_repeat: steps of dm_control per decision
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :param camera: number of the camera for ``render()`` and pixel observations; None for the suite's usual one
    :return: the environment
    """
    env: gym.Env = ControlInterface(DMControl(task, render_mode, width, height, camera), action_repeat)
    return PixelObservation(env) if obs == "pixels" else env


class DMControl(RenderedEnv):
    """
    A task of dm_control as a Gymnasium environment, in dm_control's own units: observations are float64 vectors [D],
    the task's observations flattened in dm_control's order; actions are float64 vectors [A] within the task's bounds.

    :param task: a name of ``TASKS``
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :param camera: number of the camera; None for 0, or 2 for the quadruped, as in the papers
    """

    def __init__(
        self,
        task: str,
        render_mode: str | None = None,
        width: int = 384,
        height: int = 384,
        camera: int | None = None,
    ) -> None:
        if task not in TASKS:
            nearest = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.0)[0]
            raise gym.error.NameNotFound(f'There is no DMControl task "{task}"; did you mean "dmc/{nearest}-v0"?')
        super().__init__(render_mode, width, height)
        domain, task_name = TASKS[task]
        self.camera = camera if camera is not None else (2 if domain == "quadruped" else 0)
        self.dm_env = _load(domain, task_name)
        with SUITE.importing():
            from shimmy.dm_control_compatibility import DmControlCompatibilityV0

            from sb3_mpc.envs.dmc_vectors import VectorEnvironment
        self.shimmy = DmControlCompatibilityV0(VectorEnvironment(self.dm_env), "rgb_array", {"camera_id": self.camera})
        self.observation_space, self.action_space = self.shimmy.observation_space, self.shimmy.action_space
        self.metadata = {**self.metadata, "render_fps": 1 / self.shimmy.dt}  # Shimmy's are a thousand times its dt

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """
        Start an episode.

        :param seed: determines the whole episode; without it the random stream continues
        :param options: not used
        :return: the first observation [D] and an empty info
        """
        super().reset(seed=seed)
        with explain_missing_gl():  # quadruped-escape hands its new terrain to the renderer
            return self.shimmy.reset(seed=None if seed is None else seed % 2**32)[0], {}

    def step(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """
        Carry out one control step.

        :param action: the action [A] within the task's bounds
        :return: the observation [D], the reward, whether the episode terminated (ended with discount 0), whether it was
            truncated (ended with another discount, that is by dm_control's time limit), and an empty info
        """
        observation, reward, terminated, truncated, _ = self.shimmy.step(action)
        return observation, float(reward), terminated, truncated, {}

    def frame(self, height: int, width: int) -> NDArray[np.uint8]:
        """
        Draw the present state in any size.

        :param height: height in pixels
        :param width: width in pixels
        :return: the frame [height, width, 3]
        """
        self.shimmy.render_kwargs.update(height=height, width=width)
        with explain_missing_gl():
            return np.asarray(self.shimmy.render())

    def close(self) -> None:
        """Free the simulation and what it drew with; nothing else can be called afterwards."""
        self.shimmy.close()


def _load(domain: str, task: str) -> Any:
    """
    Load a task, its random stream seeded by the operating system.

    :param domain: dm_control's name of the domain
    :param task: dm_control's name of the task
    :return: the ``dm_control.rl.control.Environment``
    """
    set_headless_backend()
    with SUITE.importing():
        from dm_control import suite
    # lqr draws its stiffnesses when it is built. From a fixed stream every instance is the same system, and
    # reset(seed=) alone determines an episode.
    random = np.random.RandomState(0)
    if task in _ADDED.get(domain, "").split():
        from sb3_mpc.envs import dmc_tasks

        dm_env = dmc_tasks.load(domain, task, random)
    else:
        dm_env = suite.load(domain, task, task_kwargs={"random": random})
    random.seed()
    return dm_env
