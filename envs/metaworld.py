"""
Meta-World: ``metaworld/<task>-v3`` for the 50 tasks of MT50, with the goal in the observation.

The protocol is that of the TD-MPC2 papers: every action is repeated twice, an episode lasts 100 decisions, objects and
goal are drawn at random at every reset, and an episode is a success if its last step is. Episodes never terminate.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_mpc.envs.gl import MujocoCamera, set_headless_backend
from sb3_mpc.envs.registry import Suite, Task, frames_for_a_window
from sb3_mpc.envs.wrappers import ControlInterface, RenderedEnv

ACTION_REPEAT = 2

_MT50 = """
    assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall
    button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open
    door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press handle-press-side
    handle-pull handle-pull-side lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place
    pick-place-wall plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall
    reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open
"""

#: The tasks of MT50
TASKS = tuple(_MT50.split())

SUITE = Suite(
    title="Meta-World",
    module="sb3_mpc.envs.metaworld",
    package="metaworld",
    distribution="metaworld",
    # Its metadata require MuJoCo 3.3.0, which excludes dm_control; with the changes below it runs with newer versions.
    install="pip install --no-deps metaworld==3.1.1",
    metric="success at the last step",
    protocol="action repeat 2, 100 decisions, random objects and goals",
    sample="assembly-v3",
    tasks={f"{task}-v3": Task(100, {"task": task}) for task in TASKS},
)


@frames_for_a_window
def make(
    task: str,
    action_repeat: int = ACTION_REPEAT,
    render_mode: str | None = None,
    width: int = 384,
    height: int = 384,
    camera: str = "corner2",
) -> gym.Env:
    """
    Entry point of ``gym.make``, which passes keyword arguments on and adds the time limit.

    :param task: a name of ``TASKS``, such as ``"assembly"``
    :param action_repeat: steps of the simulator per decision; one episode has at most 499
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :param camera: name of the camera for ``render()``
    :return: the environment
    """
    return ControlInterface(MetaWorld(task, render_mode, width, height, camera), action_repeat)


class MetaWorld(RenderedEnv):
    """
    A task of Meta-World whose objects and goal change with every episode: observations are float64 vectors [39],
    actions float32 vectors [4].

    It uses Meta-World's environment and is not derived from it: SB3 would treat an environment with Meta-World's method
    ``compute_reward`` as goal-conditioned.

    :param task: a name of ``TASKS``
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :param camera: name of the camera; ``"corner2"`` has the position of the papers, but is upright
    """

    def __init__(self, task: str, render_mode: str | None, width: int, height: int, camera: str) -> None:
        super().__init__(render_mode, width, height)
        self.sawyer, self._camera = _load(task), MujocoCamera(camera)
        self.metadata = {**self.metadata, "render_fps": self.sawyer.metadata["render_fps"]}
        # The declared bounds are those of the hand's target; the hand itself overshoots them.
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (39,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """
        Start an episode with new objects and a new goal.

        :param seed: determines the whole episode; without it the random number generator continues
        :param options: not used
        :return: the first observation [39] and an empty info
        """
        super().reset(seed=seed)
        self.sawyer.np_random = self.np_random
        observation, _ = self.sawyer.reset()
        self.sawyer.step(np.zeros(4, dtype=np.float32))  # as in the papers: episodes begin one idle step later
        return observation, {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """
        Carry out one step.

        :param action: the action [4]: movement of the hand and the gripper's force
        :return: the observation [39], the reward, whether the episode terminated (never), whether Meta-World's own
            limit of 500 steps is reached, and Meta-World's info with its ``"success"``
        """
        observation, reward, terminated, truncated, info = self.sawyer.step(action)
        return observation, float(reward), terminated, truncated, info

    def frame(self, height: int, width: int) -> NDArray[np.uint8]:
        """
        Render the present state.

        :param height: height in pixels
        :param width: width in pixels
        :return: the frame [height, width, 3]
        """
        return self._camera.frame(self.sawyer.model, self.sawyer.data, height, width)

    def close(self) -> None:
        """Free the renderer."""
        self._camera.close()


def _load(task: str) -> Any:
    """
    Load a task with an observable goal, and with objects and goals that are drawn by ``np_random``.

    :param task: a name of ``TASKS``
    :return: the environment of Meta-World
    """
    set_headless_backend()
    with SUITE.importing():
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.sawyer_xyz_env import SawyerMocapBase
    SawyerMocapBase.reset_mocap_welds = _reset_mocap_welds
    sawyer = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    sawyer._partially_observable = False
    del sawyer.sawyer_observation_space  # cached before, without the goal
    sawyer._freeze_rand_vec = False
    sawyer.seeded_rand_vec = True
    sawyer._set_task_called = True
    corner = sawyer.model.camera("corner2")
    corner.pos = (0.75, 0.075, 0.7)
    w, x, y, z = corner.quat
    corner.quat = (-z, y, -x, w)  # turn it by 180 degrees: it is mounted upside down
    return sawyer


def _reset_mocap_welds(sawyer: Any) -> None:
    """
    Set the welds between hand and mocap body as Meta-World does, for versions of MuJoCo with more numbers per weld.

    :param sawyer: the environment of Meta-World
    """
    import mujoco

    model = sawyer.model
    welds = model.eq_type == mujoco.mjtEq.mjEQ_WELD
    model.eq_data[welds, :11] = (0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5)  # anchor, relative pose, torque scale
