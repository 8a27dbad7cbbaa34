"""
The eleven tasks that TD-MPC2 (https://arxiv.org/abs/2310.16828) adds to the DeepMind Control Suite.

Each is a task of dm_control with another reward; physics, observations, initial states and time limits are those of its
domain, except for longer floors, the arm with three links and the initial states of the ball in the cup. Importing this
module imports dm_control.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from xml.etree import ElementTree

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, base, cheetah, hopper, pendulum, reacher, walker
from dm_control.utils.rewards import tolerance

INFINITY = float("inf")


def linear(value: float | np.floating, bounds: tuple[float, float], margin: float, value_at_margin: float) -> float:
    """
    Score a value: 1 within the bounds, decreasing linearly outside of them.

    :param value: the value
    :param bounds: lower and upper end of the desired range
    :param margin: distance from the range at which the score is ``value_at_margin``
    :param value_at_margin: score at that distance
    :return: the score in [0, 1]
    """
    return float(tolerance(value, bounds, margin, "linear", value_at_margin))


def high(height: float) -> float:
    """
    Score a height in metres.

    :param height: height of a body above the floor in metres
    :return: 1 at 1.2 metres or more, decreasing to 0.1 at 0.6 metres
    """
    return float(tolerance(height, (1.2, INFINITY), margin=0.6))


class WalkerBackwards(walker.PlanarWalker):
    """
    Walk or run backwards, upright.

    :param speed: speed in m/s from which the reward is largest
    :param random: random number generator of the initial states
    """

    def __init__(self, speed: float, random: np.random.RandomState) -> None:
        super().__init__(move_speed=speed, random=random)
        self.speed = speed

    def get_reward(self, physics: Any) -> float:
        """:return: the reward of the present state, in [0, 1]"""
        stand = (3 * high(physics.torso_height()) + (1 + physics.torso_upright()) / 2) / 4
        move = linear(physics.horizontal_velocity(), (-INFINITY, -self.speed), self.speed / 2, 0.5)
        return float(stand * (5 * move + 1) / 6)


class CheetahBackwards(cheetah.Cheetah):
    """Run backwards."""

    def get_reward(self, physics: Any) -> float:
        """:return: the reward of the present state, in [0, 1]"""
        return linear(physics.speed(), (-INFINITY, -8), 8, 0)


class CheetahOnOneFoot(cheetah.Cheetah):
    """
    Run forwards on one leg, with the other foot raised.

    :param raised: name of the raised foot, ``"bfoot"`` (back) or ``"ffoot"`` (front)
    :param random: random number generator of the initial states
    """

    def __init__(self, raised: str, random: np.random.RandomState) -> None:
        super().__init__(random=random)
        self.raised = raised

    def get_reward(self, physics: Any) -> float:
        """:return: the reward of the present state, in [0, 1]"""
        foot, torso = physics.named.data.xpos[[self.raised, "torso"], "z"]
        up = (3 * high(foot) + 2 * high(torso)) / 5
        return up * (5 * linear(physics.speed(), (6, INFINITY), 6, 0) + 1) / 6


class CheetahJump(cheetah.Cheetah):
    """Lift torso and both feet high up, without running."""

    def get_reward(self, physics: Any) -> float:
        """:return: the reward of the present state, in [0, 1]"""
        back, front, torso = physics.named.data.xpos[["bfoot", "ffoot", "torso"], "z"]
        up = (high((torso + back) / 2) + high((torso + front) / 2)) / 2
        return (5 * up + linear(physics.speed(), (-0.5, 0.5), 0.5, 0)) / 6


class HopperBackwards(hopper.Hopper):
    """
    Hop backwards.

    :param random: random number generator of the initial states
    """

    def __init__(self, random: np.random.RandomState) -> None:
        super().__init__(hopping=True, random=random)

    def get_reward(self, physics: Any) -> float:
        """:return: the reward of the present state, in [0, 1]"""
        return float(tolerance(physics.height(), (0.6, 2))) * linear(physics.speed(), (-INFINITY, -1), 0.5, 0.5)


class PendulumSpin(pendulum.SwingUp):
    """Spin fast, in either direction."""

    def get_reward(self, physics: Any) -> float:
        """:return: the reward of the present state, in [0, 1]"""
        return linear(np.linalg.norm(physics.angular_velocity()), (9, INFINITY), 4.5, 0.5)


class CupSpin(ball_in_cup.BallInCup):
    """Swing the ball around the cup, far from it and fast. Nine of ten episodes begin with the ball in the cup."""

    def initialize_episode(self, physics: Any) -> None:
        """Draw positions of the ball until one is free of collisions and, mostly, in the cup."""
        anywhere = self.random.uniform() < 0.1
        while True:
            super().initialize_episode(physics)
            if anywhere or physics.in_target():
                return

    def get_reward(self, physics: Any) -> float:
        """:return: the reward of the present state, in [0, 1]"""
        distance = linear(np.linalg.norm(physics.ball_to_target()), (0.5, INFINITY), 0.25, 0.5)
        speed = linear(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]), (6, INFINITY), 3, 0.5)
        return (1 - physics.in_target()) * (distance + 2 * speed) / 3


# Two links of 9 cm and one of 10 cm that carries the finger; it replaces the body "arm" of dm_control's reacher.
ARM = """
<body name="upper_arm" pos="0 0 .01">
  <joint name="shoulder"/>
  <geom name="upper_arm" type="capsule" fromto="0 0 0 .09 0 0" size=".01" material="self"/>
  <body name="forearm" pos=".09 0 0">
    <joint name="elbow" limited="true" range="-80 80"/>
    <geom name="forearm" type="capsule" fromto="0 0 0 .09 0 0" size=".01" material="self"/>
    <body name="hand" pos=".09 0 0">
      <joint name="wrist" limited="true" range="-80 80"/>
      <geom name="hand" type="capsule" fromto="0 0 0 .1 0 0" size=".01" material="self"/>
      <body name="finger" pos=".09 0 0">
        <geom name="finger" type="sphere" size=".01" material="effector"/>
        <camera name="hand" pos="0 0 .2" mode="track"/>
      </body>
    </body>
  </body>
</body>
"""


def three_link_reacher() -> str:
    """:return: MJCF of dm_control's reacher with an arm of three links"""
    model = ElementTree.fromstring(reacher.get_model_and_assets()[0])
    world, actuators = next(model.iter("worldbody")), next(model.iter("actuator"))
    for body in world.findall("body"):
        world.remove(body)
    world.append(ElementTree.fromstring(ARM))
    actuators.clear()
    for joint in ("shoulder", "elbow", "wrist"):
        ElementTree.SubElement(actuators, "motor", name=joint, joint=joint)
    return ElementTree.tostring(model, encoding="unicode")


TaskMaker = Callable[[np.random.RandomState], base.Task]

#: (domain, task) as in dm_control -> function that makes the task from a random number generator
TASKS: dict[tuple[str, str], TaskMaker] = {
    ("ball_in_cup", "spin"): CupSpin,
    ("cheetah", "run_backwards"): CheetahBackwards,
    ("cheetah", "run_front"): partial(CheetahOnOneFoot, "bfoot"),
    ("cheetah", "run_back"): partial(CheetahOnOneFoot, "ffoot"),
    ("cheetah", "jump"): CheetahJump,
    ("hopper", "hop_backwards"): HopperBackwards,
    ("pendulum", "spin"): PendulumSpin,
    ("reacher", "three_easy"): partial(reacher.Reacher, 0.05),
    ("reacher", "three_hard"): partial(reacher.Reacher, 0.015),
    ("walker", "walk_backwards"): partial(WalkerBackwards, 1.0),
    ("walker", "run_backwards"): partial(WalkerBackwards, 8.0),
}

# Module of the domain, and control time step in seconds as in dm_control, whose episodes have 1000 of them
_DOMAINS: dict[str, tuple[Any, float]] = {
    "ball_in_cup": (ball_in_cup, 0.02),
    "cheetah": (cheetah, 0.01),
    "hopper": (hopper, 0.02),
    "pendulum": (pendulum, 0.02),
    "reacher": (reacher, 0.02),
    "walker": (walker, 0.025),
}

# Half the length of the floors in metres. It matters for rendering only: the simulated floor is infinite.
_FLOORS = {"cheetah": ("ground", 200.0), "walker": ("floor", 500.0)}


def load(domain: str, task: str, random: np.random.RandomState) -> control.Environment:
    """
    Load one of the tasks, as ``dm_control.suite.load`` loads those of dm_control.

    :param domain: dm_control's name of the domain
    :param task: name of the task in ``TASKS``
    :param random: random number generator of the initial states
    :return: the environment
    """
    module, control_timestep = _DOMAINS[domain]
    xml, assets = module.get_model_and_assets()
    physics = module.Physics.from_xml_string(three_link_reacher() if domain == "reacher" else xml, assets)
    if domain in _FLOORS:
        floor, half_length = _FLOORS[domain]
        physics.named.model.geom_size[floor, "x"] = half_length
    return control.Environment(
        physics, TASKS[domain, task](random), time_limit=1000 * control_timestep, control_timestep=control_timestep
    )
