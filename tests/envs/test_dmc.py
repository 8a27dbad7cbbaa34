"""The DeepMind Control Suite behind gym.make, compared with dm_control itself."""

import os
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

import sb3_mpc.envs  # noqa: F401  (registers the ids)
from sb3_mpc.envs.dmc import TASKS, DMControl
from sb3_mpc.envs.gl import set_headless_backend
from tests.support.rendering import needs_gl

set_headless_backend()
suite = pytest.importorskip("dm_control.suite")

# State, action bounds other than -1 and 1 (quadruped), numbers among the observations (walker, dog), integer rewards
# (cup), per-episode targets (reacher)
SAMPLE = ["walker-walk", "quadruped-walk", "cup-catch", "cartpole-balance-sparse", "dog-run", "reacher-easy"]


def names(tasks: dict[str, str]) -> list[str]:
    return [f"{domain}-{task}" for domain, of_domain in tasks.items() for task in of_domain.split()]


# The tasks of TD-MPC2: from the suite, and the ones that it adds
STOCK = names(
    {
        "acrobot": "swingup",
        "cartpole": "balance balance-sparse swingup swingup-sparse",
        "cheetah": "run",
        "cup": "catch",
        "dog": "run stand trot walk",
        "finger": "spin turn-easy turn-hard",
        "fish": "swim",
        "hopper": "hop stand",
        "humanoid": "run stand walk",
        "pendulum": "swingup",
        "quadruped": "run walk",
        "reacher": "easy hard",
        "walker": "run stand walk",
    }
)
ADDED = names(
    {
        "cheetah": "jump run-back run-backwards run-front",
        "cup": "spin",
        "hopper": "hop-backwards",
        "pendulum": "spin",
        "reacher": "three-easy three-hard",
        "walker": "run-backwards walk-backwards",
    }
)


def mostly_slow(tasks: list[str], quick: list[str]) -> list[Any]:
    """Parameters of a test: ``quick`` ones always, the others by ``make test-envs``."""
    slow = [task for task in tasks if task not in quick]
    return [*quick, *(pytest.param(task, marks=pytest.mark.all_envs) for task in slow)]


def make(task: str, **kwargs: Any) -> gym.Env:
    return gym.make(f"dmc/{task}-v0", **kwargs)


def random_actions(env: gym.Env, count: int) -> np.ndarray:
    assert env.action_space.shape is not None
    return np.random.default_rng(0).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


def roll_out(env: gym.Env, actions: np.ndarray, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    observations, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


def test_all_tasks_are_registered():
    added = {TASKS[name] for name in ADDED}
    assert len(STOCK) == 28 and len(added) == 11
    assert {TASKS[name] for name in STOCK} <= set(suite.ALL_TASKS) and added.isdisjoint(suite.ALL_TASKS)
    assert set(TASKS.values()) == set(suite.ALL_TASKS) | added
    for domain, task in TASKS.values():
        name = f"{domain}-{task}".replace("_", "-")
        assert gym.spec(f"dmc/{name}-v0").max_episode_steps == 500
        assert gym.spec(f"dmc/{name}-pixels-v0").max_episode_steps == 500
    assert TASKS["cup-catch"] == TASKS["ball-in-cup-catch"] == ("ball_in_cup", "catch")
    assert TASKS["cup-spin"] == TASKS["ball-in-cup-spin"] == ("ball_in_cup", "spin")


@pytest.mark.parametrize(
    ("task", "decisions"),
    [(task, 25) for task in SAMPLE] + [pytest.param(task, 500, marks=pytest.mark.all_envs) for task in STOCK],
)
def test_equals_dm_control(task, decisions):
    """The same observations, in the same order, and rewards as dm_control with its own action-scale wrapper."""
    from dm_control.suite.wrappers import action_scale

    domain, name = TASKS[task]
    reference = action_scale.Wrapper(suite.load(domain, name, task_kwargs={"random": 3}), -1.0, 1.0)
    env = make(task)
    actions = random_actions(env, decisions)
    observations, rewards = roll_out(env, actions, seed=3)

    def flatten(time_step):
        return np.concatenate([np.ravel(part) for part in time_step.observation.values()]).astype(np.float32)

    np.testing.assert_array_equal(observations[0], flatten(reference.reset()))
    for action, observation, reward in zip(actions, observations[1:], rewards, strict=True):
        steps = [reference.step(action.astype(np.float64)) for _ in range(2)]
        np.testing.assert_array_equal(observation, flatten(steps[-1]))
        assert reward == steps[0].reward + steps[1].reward


@pytest.mark.parametrize("task", mostly_slow(list(TASKS), quick=SAMPLE + ADDED))
def test_every_task_keeps_to_the_interface(task):
    env = make(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    assert env.observation_space.dtype == np.float32
    assert env.action_space == gym.spaces.Box(-1, 1, env.action_space.shape, np.float32)
    observation, info = env.reset(seed=0)
    assert observation.dtype == np.float32 and observation.shape == env.observation_space.shape and info == {}
    _, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert type(reward) is float and type(terminated) is bool and type(truncated) is bool and info == {}


@pytest.mark.parametrize(("repeat", "decisions"), [(2, 500), (4, 250)])
def test_episode_is_truncated_after_1000_steps(repeat, decisions):
    env = make("cartpole-swingup", action_repeat=repeat, max_episode_steps=decisions)
    assert env.spec is not None and env.spec.max_episode_steps == decisions
    env.reset(seed=0)
    for decision in range(1, decisions + 1):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated and truncated == (decision == decisions)
    assert env.unwrapped.dm_env._step_count == 1000
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.unwrapped.step(env.action_space.sample())


def test_repetition_stops_where_the_episode_ends():
    env = make("cartpole-balance", action_repeat=300)  # the fourth decision ends after 100 of 300 steps
    env.reset(seed=0)
    rewards, flags = [], []
    for _ in range(4):
        _, reward, terminated, truncated, _ = env.step(np.zeros(1, dtype=np.float32))
        rewards.append(reward)
        flags.append((terminated, truncated))
    assert flags == [(False, False)] * 3 + [(False, True)]
    assert 0 < rewards[3] <= 100 < rewards[0]


def test_termination_is_no_truncation():
    env = make("lqr-lqr-2-1")  # terminates at the origin
    env.reset(seed=0)
    physics = env.unwrapped.dm_env.physics
    physics.set_state(np.zeros_like(physics.get_state()))
    physics.forward()
    _, _, terminated, truncated, _ = env.step(np.zeros(1, dtype=np.float32))
    assert terminated and not truncated


@pytest.mark.parametrize(
    "task", mostly_slow(list(TASKS), quick=["reacher-easy", "finger-turn-hard", "lqr-lqr-6-2", "cup-spin"])
)
def test_seed_determines_the_episode(task):
    env, other = make(task), make(task)
    actions = random_actions(env, 10)
    first = roll_out(env, actions, seed=5)
    second = roll_out(env, actions, seed=None)  # goes on with the stream
    assert not np.array_equal(first[0], second[0])
    for again in (env, other):  # whatever happened before
        for expected, seed in ((first, 5), (second, None)):
            observations, rewards = roll_out(again, actions, seed=seed)
            np.testing.assert_array_equal(observations, expected[0])
            np.testing.assert_array_equal(rewards, expected[1])
    assert not np.array_equal(make(task).reset()[0], make(task).reset()[0])  # without a seed, no two are the same


def test_environment_can_be_made_again_from_its_spec():
    env = make("walker-walk", action_repeat=4, max_episode_steps=250)
    assert env.spec is not None
    again = gym.make(env.spec)
    assert again.get_wrapper_attr("action_repeat") == 4
    assert again.spec is not None and again.spec.max_episode_steps == 250


def test_unknown_task_names_the_nearest():
    with pytest.raises(gym.error.NameNotFound, match="walker-walk"):
        make("waker-walk")
    with pytest.raises(gym.error.NameNotFound, match=r'no DMControl task "walker_wlak".*"dmc/walker-walk-v0"'):
        DMControl("walker_wlak")


def test_missing_dm_control_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)  # what an import of it then raises is what it raises if absent
    with pytest.raises(ModuleNotFoundError, match=r'pip install -e "\.\[dmc\]" in your clone'):
        make("walker-walk")


def test_missing_shimmy_is_explained(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "shimmy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "shimmy", None)
    with pytest.raises(ModuleNotFoundError, match=r'shimmy\S* is missing: pip install -e "\.\[dmc\]" in your clone'):
        make("walker-walk")


@pytest.mark.parametrize("action_repeat", [0, -1])
def test_action_repeat_must_be_positive(action_repeat):
    with pytest.raises(ValueError, match="at least 1"):
        make("walker-walk", action_repeat=action_repeat)


def test_works_without_opengl():
    """Training on states needs no renderer; asking for a frame without one says what to install."""
    code = (
        "import gymnasium as gym, sb3_mpc.envs\n"
        "env = gym.make('dmc/walker-walk-v0', render_mode='rgb_array')\n"
        "env.reset(); env.step(env.action_space.sample())\n"
        "try: env.render()\n"
        "except RuntimeError as error: assert 'libegl1' in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MUJOCO_GL": "disabled"})


@needs_gl
def test_frames_are_rendered():
    env = make("quadruped-walk", render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert (
        isinstance(frame, np.ndarray) and frame.shape == (384, 384, 3) and frame.dtype == np.uint8 and frame.std() > 0
    )
    assert env.unwrapped.camera == 2
    assert env.metadata["render_fps"] == pytest.approx(25)  # 0.02 s a step, two steps a decision
    env.close()

    env = make("cartpole-swingup", render_mode="rgb_array", width=64, height=48, camera=1)
    env.reset(seed=0)
    frame = env.render()
    assert isinstance(frame, np.ndarray) and frame.shape == (48, 64, 3)


@needs_gl
def test_pixels_are_three_frames():
    env = make("cartpole-swingup-pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    first, _ = env.reset(seed=0)
    assert first.shape == (9, 64, 64) and first.dtype == np.uint8
    np.testing.assert_array_equal(first[:3], first[6:])
    second = env.step(np.ones(1, dtype=np.float32))[0]
    np.testing.assert_array_equal(second[:6], first[3:])  # the oldest frame left, the newest came last
    assert not np.array_equal(second[6:], first[6:])
    np.testing.assert_array_equal(second[6:], np.moveaxis(env.unwrapped.frame(64, 64), -1, 0))
