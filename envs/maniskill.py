"""
ManiSkill 3: ``maniskill/<task>-v1`` for tasks of the TD-MPC2 papers and ``maniskill/<its own id>`` for the others.

The protocol of the papers: states as observations, end-effector control, every action repeated twice, 100 decisions
without termination, the normalised dense reward, and success at the last step. In ManiSkill 3, turn-faucet has no dense
reward, so that it has the sparse one, and there is no lift-cube. ManiSkill's own ids, such as
``maniskill/PegInsertionSide-v1``, have its own controllers and time limits. They, too, go on after success, unless
``terminates=True`` is given: who earns nothing more after success may learn to stay short of it.

``gym.make`` simulates on the CPU, with or without a Vulkan device; ``make_vec`` simulates thousands of environments on
an NVIDIA GPU at once.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_mpc.envs.registry import Suite, Task, frames_for_a_window
from sb3_mpc.envs.wrappers import ControlInterface, RenderedEnv

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

ACTION_REPEAT = 2

_NO_VULKAN = (
    "finds no device for it: install the driver of a GPU, or Mesa 24.3 or newer to render on the CPU (on Debian 12 "
    "`apt install -t bookworm-backports mesa-vulkan-drivers`)."
)

#: The papers' tasks -> ManiSkill's id and the papers' controller
PAPER_TASKS = {
    "pick-cube": ("PickCube-v1", "pd_ee_delta_pos"),
    "stack-cube": ("StackCube-v1", "pd_ee_delta_pos"),
    "pick-ycb": ("PickSingleYCB-v1", "pd_ee_delta_pose"),
    "turn-faucet": ("TurnFaucet-v1", "pd_ee_delta_pose"),
}

# ManiSkill's ids by the number of steps in an episode, without those that have no reward
_STOCK = {
    50: "LiftPegUpright PickCube PickCubeSO100 PickCubeWidowXAI PickSingleYCB PlaceSphere PokeCube PullCube PushCube "
    "StackCube",
    64: "SO100GraspCube",
    80: "RollBall RotateValveLevel0",
    100: "OpenCabinetDoor OpenCabinetDrawer PegInsertionSide PullCubeTool PushT TwoRobotPickCube TwoRobotStackCube "
    "UnitreeG1PlaceAppleInBowl UnitreeG1TransportBox",
    150: "RotateValveLevel1 RotateValveLevel2 RotateValveLevel3",
    200: "AnymalC-Reach AnymalC-Spin AssemblingKits PlugCharger TurnFaucet UnitreeGo2-Reach",
    250: "StackPyramid TriFingerRotateCubeLevel0 TriFingerRotateCubeLevel1 TriFingerRotateCubeLevel2 "
    "TriFingerRotateCubeLevel3 TriFingerRotateCubeLevel4",
    300: "DrawTriangle InsertFlower RotateSingleObjectInHandLevel0 RotateSingleObjectInHandLevel1 "
    "RotateSingleObjectInHandLevel2 RotateSingleObjectInHandLevel3 RotateValveLevel4",
    500: "FMBAssembly1Easy",
    600: "MS-HopperHop MS-HopperStand",
    1000: "MS-AntRun MS-AntWalk MS-CartpoleBalance MS-CartpoleSwingUp MS-HumanoidRun "
    "MS-HumanoidStand MS-HumanoidWalk UnitreeG1Stand UnitreeH1Stand",
}

SUITE = Suite(
    title="ManiSkill",
    module="sb3_mpc.envs.maniskill",
    package="mani_skill",
    distribution="mani-skill",
    install='pip install -e ".[maniskill]" in your clone of sb3-mpc',
    metric="success at the last step",
    protocol="action repeat 2, 100 decisions; own ids: own limits",
    sample="pick-cube-v1",
    tasks={
        **{
            f"{task}-v1": Task(100, {"task": stock, "control_mode": controller, "action_repeat": ACTION_REPEAT})
            for task, (stock, controller) in PAPER_TASKS.items()
        },
        **{
            f"{name}-v1": Task(steps, {"task": f"{name}-v1"})
            for steps, names in _STOCK.items()
            for name in names.split()
        },
    },
)


@frames_for_a_window
def make(
    task: str,
    control_mode: str | None = None,
    action_repeat: int = 1,
    terminates: bool = False,
    render_mode: str | None = None,
    width: int = 384,
    height: int = 384,
) -> gym.Env:
    """
    Entry point of ``gym.make``, which passes keyword arguments on and adds the time limit.

    :param task: ManiSkill's id, such as ``"PickCube-v1"``
    :param control_mode: ManiSkill's name of a controller; None for the task's first one
    :param action_repeat: steps of ManiSkill per decision
    :param terminates: whether ManiSkill's terminations, at success or failure, end an episode
    :param render_mode: ``"rgb_array"`` or None; rendering needs a Vulkan device
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :return: the environment
    """
    return ControlInterface(ManiSkill(task, control_mode, terminates, render_mode, width, height), action_repeat)


class ManiSkill(RenderedEnv):
    """
    A task of ManiSkill on the CPU: observations are float32 vectors [D], actions float32 vectors [A].

    :param task: ManiSkill's id
    :param control_mode: ManiSkill's name of a controller; None for the task's first one
    :param terminates: whether ManiSkill's terminations end an episode
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    """

    def __init__(
        self, task: str, control_mode: str | None, terminates: bool, render_mode: str | None, width: int, height: int
    ) -> None:
        super().__init__(render_mode, width, height)
        self.sapien = _load(task, control_mode, 1, "physx_cpu", (width, height))
        self.terminates = terminates
        self.metadata = {**self.metadata, "render_fps": self.sapien.unwrapped.control_freq}
        shape = self.sapien.get_wrapper_attr("single_observation_space").shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.action_space = self.sapien.get_wrapper_attr("single_action_space")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        Start an episode.

        :param seed: determines the whole episode; without it the random number generator continues
        :param options: passed on to ManiSkill
        :return: the first observation [D] and an empty info
        """
        super().reset(seed=seed)
        # Without a seed ManiSkill would draw the episode from PyTorch's global generator.
        episode = int(self.np_random.integers(2**31))
        # PhysX keeps contacts of past episodes: a reset with a seed creates a new simulation.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ManiSkill's own code
            self.sapien.reset(seed=episode, options={"reconfigure": seed is not None, **(options or {})})
        # Some tasks observe the contacts of the previous step, which would be one of the previous episode.
        self.sapien.unwrapped.scene.step()
        observation, _ = self.sapien.reset(seed=episode, options=options)
        return observation[0].numpy(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        Carry out one step.

        :param action: the action [A]
        :return: the observation [D], the reward, whether the episode terminated, whether it was truncated (never), and
            as info ``"success"`` and ``"fail"`` if the task reports them
        """
        observation, reward, terminated, _, info = self.sapien.step(action)
        ended = self.terminates and bool(terminated)
        known = {key: bool(info[key]) for key in ("success", "fail") if key in info}
        return observation[0].numpy(), float(reward), ended, False, known

    def frame(self, height: int, width: int) -> NDArray[np.uint8]:
        """
        Render the present state.

        :param height: height in pixels, which must be the one given to the environment
        :param width: width in pixels, likewise
        :return: the frame [height, width, 3]
        :raises ValueError: if the size is another one
        :raises RuntimeError: if there is no Vulkan device
        """
        if (height, width) != (self.height, self.width):
            raise ValueError("ManiSkill renders in one size only: give width and height when the environment is made.")
        if not _has_renderer():
            raise RuntimeError(f"ManiSkill renders with Vulkan and {_NO_VULKAN}")
        return np.asarray(self.sapien.unwrapped.render_rgb_array()[0].cpu().numpy())

    def close(self) -> None:
        """Free the simulation."""
        self.sapien.close()


def make_vec(task_id: str, num_envs: int, sim_backend: str = "physx_cuda", **kwargs: Any) -> "VecEnv":
    """
    Simulate many environments at once on an NVIDIA GPU, for ``TDMPC2("MlpPolicy", make_vec(id, 1024))``.

    :param task_id: an id as for ``gym.make``, such as ``"maniskill/pick-cube-v1"``
    :param num_envs: number of environments
    :param sim_backend: ``"physx_cuda"``; ``"physx_cpu"`` simulates one environment only
    :param kwargs: as for ``make``: ``control_mode``, ``action_repeat``, ``terminates``
    :return: the environments, with SB3's monitor
    :raises RuntimeError: if ``sim_backend`` needs a GPU and there is none
    """
    # Imported here, because SB3 takes seconds to import and registering the ids does not need it.
    from stable_baselines3.common.vec_env import VecMonitor

    from sb3_mpc.envs.maniskill_vec import ManiSkillVecEnv

    if sim_backend == "physx_cuda":
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError(
                "make_vec simulates on an NVIDIA GPU and finds none: use Stable-Baselines3's "
                f'make_vec_env("{task_id}", n_envs={num_envs}), which simulates on the CPU.'
            )
    spec = gym.spec(task_id)
    settings = {"control_mode": None, "action_repeat": 1, "terminates": False, **spec.kwargs, **kwargs}
    env = _load(settings["task"], settings["control_mode"], num_envs, sim_backend, (384, 384))
    return VecMonitor(ManiSkillVecEnv(env, spec, settings["action_repeat"], settings["terminates"]))


def _load(task: str, control_mode: str | None, num_envs: int, sim_backend: str, size: tuple[int, int]) -> Any:
    """
    Load a task with states as observations and the normalised dense reward, or the sparse one if there is no other.

    :param task: ManiSkill's id
    :param control_mode: ManiSkill's name of a controller; None for the task's first one
    :param num_envs: number of environments in one simulation
    :param sim_backend: ``"physx_cpu"`` or ``"physx_cuda"``
    :param size: width and height of frames in pixels
    :return: the ``mani_skill.envs.sapien_env.BaseEnv``, its actions flattened
    """
    with SUITE.importing():
        import mani_skill.envs  # noqa: F401  (registers the tasks)
        import torch
        from mani_skill.utils.registration import REGISTERED_ENVS
        from mani_skill.utils.wrappers.flatten import FlattenActionSpaceWrapper

    from mani_skill.utils.logging_utils import logger

    logger.setLevel(logging.ERROR)  # it logs many warnings about its own tasks
    renderer = "none"
    if _has_renderer():
        renderer = "gpu" if torch.cuda.is_available() else "cpu"
    else:
        _do_without_renderer()
    with _failures_explained(task, renderer):
        env = REGISTERED_ENVS[task].make(
            num_envs=num_envs,
            obs_mode="state",
            control_mode=control_mode,
            sim_backend=sim_backend,
            render_backend=renderer,
            render_mode=None if renderer == "none" else "rgb_array",
            human_render_camera_configs=dict(width=size[0], height=size[1]),
        )
    several_robots = isinstance(env.action_space, gym.spaces.Dict)
    return FlattenActionSpaceWrapper(env) if several_robots else env


def _has_renderer() -> bool:
    """:return: whether Sapien finds a Vulkan device to render with"""
    import sapien

    if not isinstance(sapien.render.RenderMaterial, type) or issubclass(sapien.render.RenderMaterial, _Nothing):
        return False
    try:
        sapien.render.RenderMaterial()
    except RuntimeError:
        return False
    return True


class _Nothing:
    """Replacement of the rendering classes: it accepts any call and any access to attributes, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Nothing()


def _do_without_renderer() -> None:
    """Replace the rendering classes that ManiSkill uses even without rendering, and that need a Vulkan device."""
    import sapien

    for name in ("RenderMaterial", "RenderTexture2D", "RenderShapeTriangleMesh", "RenderBodyComponent"):
        original = getattr(sapien.render, name)
        if issubclass(original, _Nothing):
            continue
        replacement = type(name, (_Nothing,), {})
        for module in list(sys.modules.values()):
            if vars(module).get(name) is original:
                setattr(module, name, replacement)


@contextmanager
def _failures_explained(task: str, renderer: str) -> Iterator[None]:
    """
    Raise errors that name the fix, in particular where ManiSkill would ask on the terminal to download assets.

    :param task: ManiSkill's id
    :param renderer: ``"none"`` if there is no Vulkan device
    """
    from mani_skill.utils import download_asset

    ask = download_asset.prompt_yes_no
    missing = f"{task} needs assets that are not on this machine: python -m mani_skill.utils.download_asset"

    def explain(question: str) -> bool:
        if os.getenv("MS_SKIP_ASSET_DOWNLOAD_PROMPT") == "1":  # ManiSkill's own switch: download and do not ask
            return True
        raise FileNotFoundError(f"{missing} {question.split()[1] if question.startswith('Robot ') else task}")

    download_asset.prompt_yes_no = explain
    try:
        yield
    except RuntimeError as error:
        _, told, assets = str(error).partition("mani_skill.utils.download_asset ")
        if not told:
            raise
        raise FileNotFoundError(f"{missing} {assets}") from error
    except AttributeError as error:  # ManiSkill uses a rendering component that was not created
        if renderer != "none":
            raise
        raise RuntimeError(f"{task} needs Vulkan even without rendering and {_NO_VULKAN}") from error
    finally:
        download_asset.prompt_yes_no = ask
