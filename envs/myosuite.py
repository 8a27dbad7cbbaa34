"""
MyoSuite: musculoskeletal control, ``myosuite/<task>-v0`` for the ten hand tasks of the TD-MPC2 papers and
``myosuite/<its own id>`` for all others.

The protocol of the papers: an episode lasts 100 decisions, terminations are ignored, and it is a success if the task is
solved at the last step; ``-hard`` tasks draw the goal at random. Under MyoSuite's own ids, such as
``myosuite/myoHandKeyTurnRandom-v0``, its own time limits and terminations hold.
"""

from typing import Any

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
