"""
MyoSuite: musculoskeletal control, ``myosuite/<task>-v0`` for the ten hand tasks of the TD-MPC2 papers and
``myosuite/<its own id>`` for all others.

The protocol of the papers: an episode lasts 100 decisions, terminations are ignored, and it is a success if the task is
solved at the last step; ``-hard`` tasks draw the goal at random. MyoSuite's own ids, such as
``myosuite/myoHandKeyTurnRandom-v0``, have its own time limits and terminations; ``myoSarc...``, ``myoFati...`` and
``myoReaf...`` are its tasks with weak muscles, tiring muscles and a transferred tendon.
"""

from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_mpc.envs.gl import MujocoCamera, set_headless_backend
from sb3_mpc.envs.registry import Suite, Task, frames_for_a_window
from sb3_mpc.envs.wrappers import ControlInterface, RenderedEnv

#: The papers' tasks -> MyoSuite's ids
PAPER_TASKS: dict[str, str] = {
    task + suffix: f"myoHand{name}{goal}-v0"
    for task, name in (
        ("reach", "Reach"),
        ("pose", "Pose"),
        ("obj-hold", "ObjHold"),
        ("key-turn", "KeyTurn"),
        ("pen-twirl", "PenTwirl"),
    )
    for suffix, goal in (("", "Fixed"), ("-hard", "Random"))
}

# MyoSuite's ids by the number of steps in an episode, without the game of tag, which needs several agents.
_STOCK = {
    50: "myoHandPenTwirlFixed-v0 myoHandPenTwirlRandom-v0 myoHandReorient100-v0 myoHandReorient8-v0 "
    "myoHandReorientID-v0 myoHandReorientOOD-v0",
    75: "myoHandObjHoldFixed-v0 myoHandObjHoldRandom-v0",
    100: "myoElbowPose1D6MExoFixed-v0 myoElbowPose1D6MExoRandom-v0 myoElbowPose1D6MFixed-v0 "
    "myoElbowPose1D6MRandom-v0 myoElbowPoseTaskFixed-v0 myoElbowPoseTaskRandom-v0 myoFingerPoseFixed-v0 "
    "myoFingerPoseRandom-v0 myoFingerReachFixed-v0 myoFingerReachRandom-v0 myoHandPose0Fixed-v0 myoHandPose1Fixed-v0 "
    "myoHandPose2Fixed-v0 myoHandPose3Fixed-v0 myoHandPose4Fixed-v0 myoHandPose5Fixed-v0 myoHandPose6Fixed-v0 "
    "myoHandPose7Fixed-v0 myoHandPose8Fixed-v0 myoHandPose9Fixed-v0 myoHandPoseFixed-v0 myoHandPoseRandom-v0 "
    "myoHandReachFixed-v0 myoHandReachRandom-v0",
    150: "myoArmReachFixed-v0 myoArmReachRandom-v0 myoChallengeDieReorientDemo-v0 myoChallengeDieReorientP1-v0 "
    "myoChallengeDieReorientP2-v0 myoChallengeRelocateP1-v0 myoChallengeRelocateP2-v0 myoChallengeRelocateP2eval-v0 "
    "myoLegStandRandom-v0",
    200: "myoChallengeBaodingP1-v1 myoChallengeBaodingP2-v1 myoHandKeyTurnFixed-v0 myoHandKeyTurnRandom-v0 "
    "myoTorsoExoPoseFixed-v0 myoTorsoPoseFixed-v0",
    300: "myoChallengeTableTennisP0-v0 myoChallengeTableTennisP1-v0 myoChallengeTableTennisP2-v0",
    1000: "myoChallengeBimanual-v0 myoChallengeOslRunFixed-v0 myoLegHillyTerrainWalk-v0 myoLegRoughTerrainWalk-v0 "
    "myoLegStairTerrainWalk-v0 myoLegWalk-v0",
    2000: "myoChallengeChaseTagFBP2-v0 myoChallengeChaseTagP1-v0 myoChallengeChaseTagP2-v0 "
    "myoChallengeChaseTagP2eval-v0 myoChallengeSoccerP1-v0 myoChallengeSoccerP2-v0",
    60000: "myoChallengeOslRunRandom-v0",
}
_WITHOUT_CONDITIONS = {
    200: "motorFingerPoseFixed-v0 motorFingerPoseRandom-v0 motorFingerReachFixed-v0 motorFingerReachRandom-v0",
    500: "myoFullBodyDirectional-v0 myoLegDirectionalBackward-v0 myoLegDirectionalForward-v0 "
    "myoLegDirectionalRandom-v0",
    1000: "myoMimicBimanual-v0 myoMimicFullbody-v0 myoMuscleMimicBimanual-v0 myoMuscleMimicFullbody-v0",
}

#: MyoSuite's ids -> number of steps in an episode
STOCK_TASKS: dict[str, int] = {
    condition + name.removeprefix("myo") if condition else name: steps
    for conditions, ids in ((("", "myoSarc", "myoFati", "myoReaf"), _STOCK), (("",), _WITHOUT_CONDITIONS))
    for steps, names in ids.items()
    for name in names.split()
    for condition in conditions
    if condition != "myoReaf" or name.startswith("myoHand")  # the transferred tendon is one of the thumb
}

SUITE = Suite(
    title="MyoSuite",
    module="sb3_mpc.envs.myosuite",
    package="myosuite",
    distribution="myosuite",
    install='pip install -e ".[myosuite]" in your clone of sb3-mpc',
    metric="solved at the last step",
    protocol="100 decisions, no termination; own ids: own limits and terminations",
    sample="key-turn-hard-v0",
    tasks={
        **{f"{task}-v0": Task(100, {"task": stock, "terminates": False}) for task, stock in PAPER_TASKS.items()},
        **{name: Task(steps, {"task": name}) for name, steps in STOCK_TASKS.items()},
    },
)


@frames_for_a_window
def make(
    task: str,
    terminates: bool = True,
    action_repeat: int = 1,
    render_mode: str | None = None,
    width: int = 384,
    height: int = 384,
    camera: str | int | None = None,
) -> gym.Env:
    """
    Entry point of ``gym.make``, which passes keyword arguments on and adds the time limit.

    :param task: MyoSuite's id, such as ``"myoHandKeyTurnRandom-v0"``
    :param terminates: whether MyoSuite's terminations end an episode
    :param action_repeat: steps of MyoSuite per decision; the time limit then counts decisions
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :param camera: name or number of the camera for ``render()``; None for the papers' (hands) or the task's own
    :return: the environment
    """
    return ControlInterface(MyoSuite(task, terminates, render_mode, width, height, camera), action_repeat)


class MyoSuite(RenderedEnv):
    """
    A task of MyoSuite: observations are float32 vectors [D], actions float32 vectors [A].

    :param task: MyoSuite's id
    :param terminates: whether MyoSuite's terminations end an episode
    :param render_mode: ``"rgb_array"`` or None
    :param width: width in pixels of the frames of ``render()``
    :param height: height in pixels of the frames of ``render()``
    :param camera: name or number of the camera; None for the papers' (hands) or the task's own
    """

    def __init__(
        self,
        task: str,
        terminates: bool,
        render_mode: str | None,
        width: int,
        height: int,
        camera: str | int | None,
    ) -> None:
        super().__init__(render_mode, width, height)
        set_headless_backend()
        with SUITE.importing():
            import myosuite  # noqa: F401  (registers its ids)
        # Its wrappers belong to the task (muscle conditions, end of diverged simulations), its time limit does not.
        self.myo = gym.make(task, max_episode_steps=-1, disable_env_checker=True)
        self.terminates = terminates
        self.observation_space, self.action_space = self.myo.observation_space, self.myo.action_space
        self.simulation = cast(Any, self.myo.unwrapped)
        model = self.simulation.model
        self.metadata = {**self.metadata, "render_fps": 1 / (self.simulation.frame_skip * model.opt.timestep)}
        if camera is None:
            cameras = [model.camera(number).name for number in range(model.ncam)]
            own = self.simulation.render_camera
            camera = "hand_side_inter" if "hand_side_inter" in cameras else -1 if own is None else own
        self._camera = MujocoCamera(camera)
        if model.nlight == 0:  # some scenes have no light but a weak one at the camera
            model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.4, 0.8

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        Start an episode.

        :param seed: determines the whole episode; without it the random number generator continues
        :param options: passed on to MyoSuite
        :return: the first observation [D] and an empty info
        """
        super().reset(seed=seed)
        observation, _ = self.myo.reset(seed=seed, options=options)
        return observation, {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        Carry out one step.

        :param action: the action [A]
        :return: the observation [D], the reward, whether the episode terminated, whether it was truncated (never), and
            as info ``"success"``: whether the task is solved now
        """
        observation, reward, terminated, _, info = self.myo.step(action)
        known = {"success": bool(info["solved"])} if "solved" in info else {}
        return observation, float(reward), self.terminates and bool(terminated), False, known

    def frame(self, height: int, width: int) -> NDArray[np.uint8]:
        """
        Render the present state.

        :param height: height in pixels
        :param width: width in pixels
        :return: the frame [height, width, 3]
        """
        return self._camera.frame(self.simulation.model, self.simulation.data, height, width)

    def close(self) -> None:
        """Free the simulation and the renderer."""
        self._camera.close()
        self.myo.close()
