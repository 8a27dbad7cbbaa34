"""Environments of several tasks: sets, padding, cut actions, and agents that read the tasks off them."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_mpc import BMPC, TDMPC2
from sb3_mpc.agents.agent_files import load_agent, read_card, save_agent
from sb3_mpc.envs import make_multitask
from sb3_mpc.envs.multitask import FEW_SHOT, TASK_SETS, TaskEnv, find_tasks
from tests.support.agents import PointEnv, SpaceEnv, assert_one_clear_sentence, make_agent

TASKS = ["Pendulum-v1", "MountainCarContinuous-v0"]  # three and two observations, one action each


def point() -> gym.Env:
    return gym.wrappers.TimeLimit(PointEnv(length=50), 10)


def test_sets_are_the_official_ones() -> None:
    assert [len(TASK_SETS[name]) for name in ("mt30", "mt80", "mt70")] == [30, 80, 70]
    assert TASK_SETS["mt80"][:30] == TASK_SETS["mt30"]
    # places in the official list, which are the task indices of official checkpoints
    places = {1: "dmc/walker-walk-v0", 18: "dmc/hopper-hop-v0", 29: "dmc/pendulum-spin-v0"}
    places |= {30: "metaworld/assembly-v3", 32: "metaworld/button-press-topdown-v3", 79: "metaworld/hand-insert-v3"}
    assert {place: TASK_SETS["mt80"][place] for place in places} == places
    assert all(task in gym.registry for task in TASK_SETS["mt80"])
    assert len(FEW_SHOT) == 10 and not set(FEW_SHOT) & set(TASK_SETS["mt70"])
    assert set(FEW_SHOT.values()) <= set(TASK_SETS["mt70"])


def test_tasks_are_named_once() -> None:
    assert find_tasks(["mt30", "Pendulum-v1"])[-2:] == ("dmc/pendulum-spin-v0", "Pendulum-v1")
    for tasks, words in ((["mt30", "dmc/cup-spin-v0"], "dmc/cup-spin-v0 is there twice"), ([], "mt30, mt80, mt70")):
        with pytest.raises(ValueError) as caught:
            find_tasks(tasks)
        assert_one_clear_sentence(caught.value, words)


def test_observations_are_padded_and_actions_cut() -> None:
    env = make_multitask([*TASKS, point], copies=2, seed=0)
    assert env.observation_space == spaces.Dict(obs=spaces.Box(-np.inf, np.inf, (3,)), task=spaces.Discrete(3))
    assert env.action_space == spaces.Box(-1, 1, (2,))
    observation: Any = env.reset()
    assert observation["task"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (observation["obs"][2:4, 2] == 0).all() and (observation["obs"][2:4, 0] != 0).all()
    assert (observation["obs"][0] != observation["obs"][1]).any()
    outcomes = []
    for padding in (-1.0, 1.0):
        env.seed(3)
        env.reset()
        observation, rewards, *_ = env.step(np.tile([[0.5, padding]], (6, 1)))
        outcomes.append([*rewards[:4], *observation["obs"][:4].flatten()])
    assert outcomes[0] == outcomes[1]  # what lies beyond a task's actions is not for it
    env.close()


def test_actions_have_the_range_of_the_task() -> None:
    space = spaces.Dict(obs=spaces.Box(-np.inf, np.inf, (4,)), task=spaces.Discrete(2))
    env = TaskEnv(PointEnv(start=0.0), 1, space, spaces.Box(-1, 1, (3,)))
    check_env(TaskEnv(PointEnv(), 1, space, spaces.Box(-1, 1, (3,))))
    env.reset(seed=0)
    observation, *_ = env.step(np.array([1.0, 0.0, 1.0], np.float32))  # of [-2, 2] and [-1, 3]
    np.testing.assert_allclose(observation["obs"], [0.2, 0.1, 0.1, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("env", "task", "size", "words"),
    [
        (PointEnv(), 0, 2, "PointEnv has 3 observations and 2 actions, .* room for \\(2, 2\\)"),
        (PointEnv(), 2, 3, "cannot be task 2 of 2"),
        (SpaceEnv(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Box(-1, 1, (2,))), 0, 3, "need flat boxes"),
    ],
)
def test_what_does_not_fit_is_refused(env: gym.Env, task: int, size: int, words: str) -> None:
    space = spaces.Dict(obs=spaces.Box(-1, 1, (size,)), task=spaces.Discrete(2))
    with pytest.raises(ValueError) as caught:
        TaskEnv(env, task, space, spaces.Box(-1, 1, (2,)))
    assert_one_clear_sentence(caught.value, words)


@pytest.mark.parametrize("algorithm", [TDMPC2, BMPC])
def test_agents_read_the_tasks_off(algorithm: Any, tmp_path: Path) -> None:
    env = make_multitask([*TASKS, point], seed=0)
    model = make_agent(algorithm, env, "MultitaskPolicy", policy_kwargs=dict(task_dim=4)).learn(24)
    policy = model.policy
    assert policy.task_names == [*TASKS, "PointEnv-2"]
    assert policy.world_model.action_masks.tolist() == [[1, 0], [1, 0], [1, 1]]
    assert policy.world_model.gammas.flatten().tolist() == pytest.approx([0.975, 0.995, 0.95], abs=1e-5)
    assert policy.task_index("Pendulum") == policy.task_index(0) == 0
    with pytest.raises(ValueError) as caught:
        policy.task_index("Pendulums-v1")
    assert_one_clear_sentence(caught.value, "no task 'Pendulums-v1'", "Pendulum-v1")
    model.save(tmp_path / "agent")
    save_agent(model, tmp_path / "file")
    assert read_card(tmp_path / "file")["environment"] is None  # no single one
    for loaded in (algorithm.load(tmp_path / "agent", env), load_agent(tmp_path / "file", env)):
        assert loaded.policy.task_names == policy.task_names
        assert loaded.policy.world_model.gammas.tolist() == policy.world_model.gammas.tolist()
        np.testing.assert_array_equal(
            loaded.predict(env.reset(), deterministic=True)[0].shape, model.predict(env.reset())[0].shape
        )


def test_what_is_given_wins_over_what_is_read() -> None:
    env = make_multitask(TASKS)
    model = make_agent(TDMPC2, env, "MultitaskPolicy", policy_kwargs=dict(gammas=[0.9, 0.8]))
    assert model.policy.world_model.gammas.flatten().tolist() == pytest.approx([0.9, 0.8])
    assert model.policy.world_model.action_masks.tolist() == [[1], [1]]


def test_another_order_of_the_tasks_is_refused(tmp_path: Path) -> None:
    model = make_agent(TDMPC2, make_multitask(TASKS), "MultitaskPolicy")
    model.save(tmp_path / "agent")
    other = make_multitask(TASKS[::-1])
    for give in (model.set_env, lambda env: TDMPC2.load(tmp_path / "agent", env)):
        with pytest.raises(ValueError) as caught:
            give(other)
        assert_one_clear_sentence(caught.value, "MountainCarContinuous-v0 as task 0, which is task 1 of the agent")


@pytest.mark.slow
def test_tasks_in_worker_processes() -> None:
    env = make_multitask(TASKS[:1], vec_env_cls=SubprocVecEnv)
    try:
        assert env.reset()["task"].tolist() == [0]  # type: ignore[call-overload, index]
        assert make_agent(TDMPC2, env, "MultitaskPolicy").policy.task_names == TASKS[:1]
    finally:
        env.close()
