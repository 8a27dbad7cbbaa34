"""
HumanoidBench: ``humanoid-bench/<robot>-<task>-v0`` with the robots ``h1hand`` (with dexterous hands) and ``h1``.

The protocol is that of its paper: no action repeat, the benchmark's own time limits, most of 1000 steps, and a
termination when the robot falls. An episode is a success once its return reaches the task's success bar;
``info["success"]`` reports this, and replaces the entry of that name that some manipulation tasks have.

The package requires versions from 2024 of its dependencies. Installed by ``pip install --no-deps`` it runs with present
versions, because incompatible modules are replaced when it is imported; its files are not changed.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_mpc.envs.gl import MujocoCamera, set_headless_backend
from sb3_mpc.envs.registry import Suite, Task, frames_for_a_window
from sb3_mpc.envs.wrappers import ControlInterface, RenderedEnv

ROBOTS = ("h1hand", "h1")

# The 14 locomotion tasks, for both robots
_LOCOMOTION = """
    stand walk run reach hurdle crawl maze sit_simple sit_hard balance_simple balance_hard stair slide pole
"""

# The manipulation tasks that load, by robot. MuJoCo 3 rejects the model of kitchen, and highbar has no model with
# hands.
_MANIPULATION = {
    "h1hand": "basketball bookshelf_simple bookshelf_hard cabinet cube door insert_normal insert_small package "
    "powerlift push room spoon truck window",
    "h1": "basketball door highbar_simple package push truck",
}

# Episodes of all other tasks have 1000 steps.
_LIMITS = {"basketball": 500, "cube": 500, "insert_normal": 500, "insert_small": 500, "push": 500}

SUITE = Suite(
    title="HumanoidBench",
    module="sb3_mpc.envs.humanoid_bench",
    package="humanoid_bench",
    distribution="humanoid-bench",
    install=(
        'pip install -e ".[dmc]" in your clone of sb3-mpc; git clone https://github.com/carlosferrazza/humanoid-bench '
        "&& pip install --no-deps -e humanoid-bench"
    ),
    metric="return, and success: return >= the task's bar",
    protocol="action repeat 1, 1000 steps (some manipulation tasks 500), terminates at a fall",
    sample="h1hand-walk-v0",
    tasks={
        f"{robot}-{task.replace('_', '-')}-v0": Task(_LIMITS.get(task, 1000), {"robot": robot, "task": task})
        for robot in ROBOTS
        for task in (_LOCOMOTION + _MANIPULATION[robot]).split()
    },
)


@frames_for_a_window
def make(
    robot: str,
    task: str,
    terminates: bool = True,
    action_repeat: int = 1,
    render_mode: str | None = None,
    width: int = 384,
    height: int = 384,
    camera: str | None = None,
) -> gym.Env:
    """
    Entry point of ``gym.make``, which passes keyword arguments on and adds the time limit.

    :param robot: one of ``ROBOTS``
    :param task: HumanoidBench's name of the task, such as ``"sit_simple"``
    :param terminates: whether HumanoidBench's terminations, most of them falls, end an episode
    :param action_repeat: steps of the benchmark per decision; its time limit then counts decisions
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :param camera: name of the camera for ``render()``; None for the task's own
    :return: the environment
    """
    return ControlInterface(HumanoidBench(robot, task, terminates, render_mode, width, height, camera), action_repeat)


class HumanoidBench(RenderedEnv):
    """
    A task of HumanoidBench: observations are float64 vectors [D], actions float32 vectors [A] in [-1, 1].

    :param robot: one of ``ROBOTS``
    :param task: HumanoidBench's name of the task
    :param terminates: whether HumanoidBench's terminations end an episode
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :param camera: name of the camera; None for the task's own
    """

    def __init__(
        self,
        robot: str,
        task: str,
        terminates: bool,
        render_mode: str | None,
        width: int,
        height: int,
        camera: str | None,
    ) -> None:
        super().__init__(render_mode, width, height)
        self.terminates = terminates
        self.humanoid = _load(robot, task)
        self.success_bar = float(self.humanoid.task.success_bar)
        self._camera = MujocoCamera(camera or self.humanoid.task.camera_name)
        self.metadata = {**self.metadata, "render_fps": 1 / self.humanoid.dt}
        self.observation_space, self.action_space = self.humanoid.observation_space, self.humanoid.action_space
        self._return = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """
        Start an episode.

        :param seed: determines the whole episode; without it the random number generator continues
        :param options: not used
        :return: the first observation [D] and the info of the benchmark
        """
        super().reset(seed=seed)
        self._return = 0.0
        if hasattr(self.humanoid.task, "step_counter"):
            self.humanoid.task.step_counter = 0  # spoon's target turns with it; the benchmark never resets it
        episode = int(self.np_random.integers(2**31))
        # Some tasks draw from NumPy's global generator, which we restore afterwards. The first observation of package
        # has the destination of the previous episode: after two resets with one seed it is the right one.
        global_state = np.random.get_state()
        try:
            for _ in range(2):
                np.random.seed(episode)
                observation, info = self.humanoid.reset(seed=episode)
        finally:
            np.random.set_state(global_state)
        return observation, info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """
        Carry out one step.

        :param action: the action [A] in [-1, 1]
        :return: the observation [D], the reward, whether the episode terminated (the robot fell), whether it was
            truncated (never), and the terms of the reward as info, with ``"success"``: whether the return so far
            reaches the task's success bar
        """
        observation, reward, terminated, truncated, info = self.humanoid.step(action)
        self._return += float(reward)
        info = {**info, "success": self._return >= self.success_bar}
        return observation, float(reward), self.terminates and bool(terminated), truncated, info

    def frame(self, height: int, width: int) -> NDArray[np.uint8]:
        """
        Render the present state.

        :param height: height in pixels
        :param width: width in pixels
        :return: the frame [height, width, 3]
        """
        return self._camera.frame(self.humanoid.model, self.humanoid.data, height, width)

    def close(self) -> None:
        """Free the renderer."""
        self._camera.close()


def _load(robot: str, task: str) -> Any:
    """
    Load a task with position control.

    :param robot: one of ``ROBOTS``
    :param task: HumanoidBench's name of the task
    :return: the ``humanoid_bench.env.HumanoidEnv``
    """
    set_headless_backend()
    with SUITE.importing():
        _replace_incompatible_modules()
        from humanoid_bench.env import TASKS, HumanoidEnv
    # Without a render mode: otherwise every environment would open a window or an OpenGL context at once.
    return HumanoidEnv(robot=robot, control="pos", task=task, render_mode=None, **TASKS[task].kwargs)


def _replace_incompatible_modules() -> None:
    """Replace modules of humanoid_bench that do not run with present versions of its dependencies."""
    package = importlib.util.find_spec("humanoid_bench")
    if package is None or package.submodule_search_locations is None:
        raise ModuleNotFoundError(name="humanoid_bench")
    from dm_control.mujoco import index
    from dm_control.mujoco.wrapper.mjbindings import sizes

    # It converts pretrained low-level policies, which the tasks do not use, and imports jax
    policies = ModuleType("humanoid_bench.mjx.flax_to_torch")
    vars(policies).update(TorchModel=None, TorchPolicy=None)
    # Two of its modules are copies of dm_control's for an older MuJoCo; the others are kept
    dm_control_parts = ModuleType("humanoid_bench.dmc_deps")
    dm_control_parts.__path__ = [f"{folder}/dmc_deps" for folder in package.submodule_search_locations]
    vars(dm_control_parts).update(dmc_index=index, dmc_sizes=sizes)
    for module in (policies, dm_control_parts):
        sys.modules.setdefault(module.__name__, module)
    sys.modules.setdefault("humanoid_bench.dmc_deps.dmc_index", index)
    sys.modules.setdefault("humanoid_bench.dmc_deps.dmc_sizes", sizes)
