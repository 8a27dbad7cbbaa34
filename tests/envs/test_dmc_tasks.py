"""The eleven tasks that TD-MPC2 adds to the DeepMind Control Suite, against their published reward definitions."""

from collections.abc import Callable
from math import cos, pi, sin
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import sb3_mpc.envs  # noqa: F401  (registers the ids)
from sb3_mpc.envs.gl import set_headless_backend

set_headless_backend()
pytest.importorskip("dm_control.suite")


def gauss(distance: float) -> float:
    """dm_control's default score of a value that misses its range by so many margins"""
    return 0.1 ** (distance**2)


# Task, positions and velocities of the joints (all others are zero), reward by the published definition in numbers.
# At zero the walker's torso is 1.3 m high; the cheetah's torso, back and front foot are 0.7, 0.31 and 0.28 m high and,
# standing on its nose (rooty = pi/2), 0.7, 1.32 and 0.21 m; the ball hangs 0.35 m below the target.
REWARDS: list[tuple[str, dict[str, float], dict[str, float], float]] = [
    ("walker-walk-backwards", {}, {"rootx": -1}, 1),
    ("walker-walk-backwards", {}, {"rootx": -3}, 1),
    ("walker-walk-backwards", {}, {"rootx": -0.75}, (5 * 0.75 + 1) / 6),
    ("walker-walk-backwards", {}, {}, 1 / 6),
    ("walker-walk-backwards", {}, {"rootx": 1}, 1 / 6),
    ("walker-walk-backwards", {"rootz": -0.4}, {"rootx": -1}, (3 * gauss(0.3 / 0.6) + 1) / 4),
    ("walker-walk-backwards", {"rooty": pi / 2}, {"rootx": -1}, (3 + 1 / 2) / 4),
    ("walker-walk-backwards", {"rooty": pi}, {"rootx": -0.5}, 3 / 4 * (5 * 0.5 + 1) / 6),
    ("walker-run-backwards", {}, {"rootx": -8}, 1),
    ("walker-run-backwards", {}, {"rootx": -6}, (5 * 0.75 + 1) / 6),
    ("walker-run-backwards", {}, {"rootx": -1}, (5 * 0.125 + 1) / 6),
    ("walker-run-backwards", {"rootz": -0.7}, {"rootx": -8}, (3 * gauss(0.6 / 0.6) + 1) / 4),
    ("cheetah-run-backwards", {}, {"rootx": -8}, 1),
    ("cheetah-run-backwards", {}, {"rootx": -10}, 1),
    ("cheetah-run-backwards", {}, {"rootx": -2}, 0.25),
    ("cheetah-run-backwards", {}, {}, 0),
    ("cheetah-run-backwards", {}, {"rootx": 3}, 0),
    ("cheetah-run-front", {"rootz": 1}, {"rootx": 6}, 1),
    ("cheetah-run-front", {"rootz": 1}, {"rootx": 1.5}, (5 * 0.25 + 1) / 6),
    ("cheetah-run-front", {"rootz": 1}, {"rootx": -6}, 1 / 6),
    ("cheetah-run-front", {"rooty": pi / 2}, {"rootx": 6}, (3 + 2 * gauss(0.5 / 0.6)) / 5),
    ("cheetah-run-front", {"rootz": 0.2}, {"rootx": 6}, (3 * gauss(0.69 / 0.6) + 2 * gauss(0.3 / 0.6)) / 5),
    ("cheetah-run-back", {"rootz": 1}, {"rootx": 6}, 1),
    ("cheetah-run-back", {"rootz": 1}, {"rootx": 3}, (5 * 0.5 + 1) / 6),
    ("cheetah-run-back", {"rooty": pi / 2}, {"rootx": 6}, (3 * gauss(0.99 / 0.6) + 2 * gauss(0.5 / 0.6)) / 5),
    ("cheetah-run-back", {"rootz": 0.2}, {}, (3 * gauss(0.72 / 0.6) + 2 * gauss(0.3 / 0.6)) / 5 / 6),
    ("cheetah-jump", {"rootz": 1}, {}, 1),
    ("cheetah-jump", {"rootz": 1}, {"rootx": -0.5}, 1),
    ("cheetah-jump", {"rootz": 1}, {"rootx": 0.75}, (5 + 0.5) / 6),
    ("cheetah-jump", {"rootz": 1}, {"rootx": -3}, 5 / 6),
    ("cheetah-jump", {"rootz": 0.5}, {}, (5 * (gauss(0.195 / 0.6) + gauss(0.21 / 0.6)) / 2 + 1) / 6),
    ("cheetah-jump", {"rooty": pi / 2}, {}, (5 * (gauss(0.19 / 0.6) + gauss(0.745 / 0.6)) / 2 + 1) / 6),
    ("hopper-hop-backwards", {}, {"rootx": -1}, 1),
    ("hopper-hop-backwards", {}, {"rootx": -2}, 1),
    ("hopper-hop-backwards", {}, {"rootx": -0.75}, 0.75),
    ("hopper-hop-backwards", {}, {}, 0),
    ("hopper-hop-backwards", {}, {"rootx": 1}, 0),
    ("hopper-hop-backwards", {"rooty": pi / 2}, {"rootx": -1}, 0),  # lying
    ("pendulum-spin", {}, {"hinge": 9}, 1),
    ("pendulum-spin", {"hinge": 2}, {"hinge": -12}, 1),
    ("pendulum-spin", {}, {"hinge": 6.75}, 0.75),
    ("pendulum-spin", {}, {"hinge": -4.5}, 0.5),
    ("pendulum-spin", {}, {}, 0),
    ("cup-spin", {"ball_x": 0.4, "ball_z": 0.05}, {"ball_x": 3.6, "ball_z": -4.8}, 1),
    ("cup-spin", {}, {}, 0.7 / 3),
    ("cup-spin", {}, {"ball_x": -3}, (0.7 + 2 * 0.5) / 3),
    ("cup-spin", {}, {"ball_x": 2.7, "ball_z": 3.6}, (0.7 + 2 * 0.75) / 3),
    ("cup-spin", {"cup_x": 0.3, "ball_x": 0.3, "cup_z": 0.1}, {}, 0.9 / 3),
    ("cup-spin", {"ball_z": 0.35}, {"ball_x": 6}, 0),  # in the cup
]


def dm_control_of(env: gym.Env) -> tuple[Any, Any]:
    dm_env = env.unwrapped.dm_env  # type: ignore[attr-defined]
    return dm_env.task, dm_env.physics


@pytest.fixture(scope="module")
def make() -> Callable[[str], gym.Env]:
    """Make an environment once for all tests of this file."""
    made: dict[str, gym.Env] = {}

    def make(task: str) -> gym.Env:
        if task not in made:
            made[task] = gym.make(f"dmc/{task}-v0")
        made[task].reset(seed=0)
        return made[task]

    return make


@pytest.mark.parametrize(("task", "positions", "velocities", "reward"), REWARDS)
def test_reward(make, task, positions, velocities, reward):
    dm_task, physics = dm_control_of(make(task))
    for values, given in ((physics.data.qpos, positions), (physics.data.qvel, velocities)):
        values[:] = 0
        for joint, value in given.items():
            values[physics.model.name2id(joint, "joint")] = value
    physics.forward()
    assert dm_task.get_reward(physics) == pytest.approx(reward, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("task", "radius"), [("reacher-three-easy", 0.05), ("reacher-three-hard", 0.015)])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (2.0, 1.3, -0.7), (-3.0, 0.5, 1.2)])
def test_reward_and_observation_of_the_reacher(make, task, radius, angles):
    dm_task, physics = dm_control_of(make(task))
    assert physics.named.model.geom_size["target", 0] == radius
    first, second, third = np.cumsum(angles)
    finger = 0.09 * np.array([cos(first) + cos(second) + cos(third), sin(first) + sin(second) + sin(third)])
    reach = radius + 0.01  # the finger is a ball too
    for distance, reward in ((0, 1), (reach - 1e-4, 1), (reach + 1e-4, 0), (0.2, 0)):
        offset = distance * np.array([0.6, -0.8])
        physics.data.qpos[:], physics.data.qvel[:] = angles, (1, 2, 3)
        physics.named.model.geom_pos["target", ["x", "y"]] = finger + offset
        physics.forward()
        assert dm_task.get_reward(physics) == reward
        observation = np.concatenate(list(dm_task.get_observation(physics).values()))
        np.testing.assert_allclose(observation, [*angles, *offset, 1, 2, 3], atol=1e-12)


def test_model_of_the_reacher(make):
    _, physics = dm_control_of(make("reacher-three-easy"))
    model = physics.model
    assert (model.nq, model.nu, physics.timestep()) == (3, 3, 0.02)
    assert model.jnt_limited.tolist() == [0, 1, 1]
    np.testing.assert_allclose(np.rad2deg(model.jnt_range[1:]), [[-80, 80]] * 2)
    np.testing.assert_allclose(model.dof_damping, 0.01)
    np.testing.assert_allclose(model.actuator_gear[:, 0], 0.05)
    np.testing.assert_allclose(model.actuator_ctrlrange, [[-1, 1]] * 3)
    assert model.actuator_trnid[:, 0].tolist() == [0, 1, 2]
    mass = [1000 * pi * 0.01**2 * (length + 4 / 3 * 0.01) for length in (0.09, 0.09, 0.1)]  # capsules of water
    np.testing.assert_allclose(model.body_subtreemass[1], sum(mass) + 1000 * 4 / 3 * pi * 0.01**3)
    physics.data.qpos[:] = (0, 1.3, 1.3)  # the finger goes through the first link
    physics.forward()
    assert physics.data.ncon == 0


@pytest.mark.parametrize(("task", "floor", "half_length"), [("walker", "floor", 500), ("cheetah", "ground", 200)])
def test_floors_are_long(make, task, floor, half_length):
    _, physics = dm_control_of(make(f"{task}-run-backwards"))
    assert physics.named.model.geom_size[floor, "x"] == half_length


def test_ball_mostly_starts_in_the_cup(make):
    env = make("cup-spin")
    _, physics = dm_control_of(env)
    inside = []
    for _ in range(60):
        env.reset()
        x, z = physics.named.data.qpos[["ball_x", "ball_z"]]
        assert -0.2 < x < 0.2 and 0.2 < z < 0.5 and physics.data.ncon == 0
        inside.append(abs(x) < 0.025 and abs(z - 0.35) < 0.025)
    assert 0.75 < np.mean(inside) < 1


def pump(observation: np.ndarray, _: int) -> list[float]:
    return [1.0 if observation[2] >= 0 else -1.0]


def swing(_: np.ndarray, step: int) -> list[float]:
    return [cos(0.48 * step), sin(0.48 * step)]


def reach(observation: np.ndarray, _: int) -> np.ndarray:
    """Pull the finger towards the target through the transposed Jacobian of the arm."""
    angles, to_target, velocities = np.cumsum(observation[:3]), observation[3:5], observation[5:]
    jacobian = [[-sum(0.09 * np.sin(angles[link:])), sum(0.09 * np.cos(angles[link:]))] for link in range(3)]
    return np.clip(100 * np.array(jacobian) @ to_target - 0.3 * velocities, -1, 1)


@pytest.mark.parametrize(
    ("task", "script"),
    [("pendulum-spin", pump), ("cup-spin", swing), ("reacher-three-easy", reach), ("reacher-three-hard", reach)],
)
def test_reward_can_be_earned(make, task, script):
    """A few lines of control earn most of the reward within 100 decisions, from a first state as it comes."""
    env = make(task)
    observation, _ = env.reset(seed=0)
    rewards = []
    for step in range(100):
        observation, reward, *_ = env.step(np.array(script(observation, step), dtype=np.float32))
        rewards.append(reward / 2)
    assert np.mean(rewards[-20:]) > 0.5


@pytest.mark.parametrize(
    ("task", "positions", "velocity"),
    [
        ("walker-walk-backwards", {}, -1),
        ("walker-run-backwards", {}, -8),
        ("cheetah-run-backwards", {}, -8),
        ("cheetah-run-front", {"rootz": 0.2, "rooty": pi / 2}, 6),
        ("cheetah-run-back", {"rootz": 0.3, "rooty": -pi / 2}, 6),
        ("cheetah-jump", {"rootz": 0.7}, 0),
        ("hopper-hop-backwards", {"rootz": 0.1}, -1.5),
    ],
)
def test_reward_is_paid_in_motion(make, task, positions, velocity):
    """In the seven tasks of locomotion, whose control takes learning: a good state is paid, not just defined."""
    env = make(task)
    _, physics = dm_control_of(env)
    physics.data.qpos[:], physics.data.qvel[:] = 0, 0
    for joint, value in positions.items():
        physics.named.data.qpos[joint] = value
    physics.named.data.qvel["rootx"] = velocity
    physics.forward()
    _, reward, *_ = env.step(np.zeros_like(env.action_space.sample()))
    assert reward / 2 > 0.5
