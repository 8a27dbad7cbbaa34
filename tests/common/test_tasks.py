"""Agents of several tasks that gain another one: what they know stays, and learning goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mpc import MBDPO, TDMPC2
from sb3_mpc.agents.agent_files import load_agent, save_agent
from sb3_mpc.envs.multitask import TaskEnv
from sb3_mpc.zoo.import_official import import_official
from tests.common.policies.test_multitask import SETTINGS, make_agent, observations
from tests.support.agents import SMALL, PointEnv, SpaceEnv, assert_one_clear_sentence, assert_same_state, vec
from tests.zoo.test_import_official import as_official


def padded(observation: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    extra = size - observation["obs"].shape[1]
    return {**observation, "obs": np.pad(observation["obs"], ((0, 0), (0, extra)))}


def plans(model: Any, observation: dict[str, np.ndarray]) -> np.ndarray:
    model.policy.acceleration = model.policy.acceleration._replace(bfloat16=False)
    actions, _ = model.predict(observation, deterministic=True)
    return np.concatenate([actions, model.actor.predict(observation, deterministic=True)[0]])


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_what_is_known_stays(algorithm: Any) -> None:
    """Plans, parameters and state of the optimisers, also where observations and actions become larger."""
    model = make_agent(algorithm=algorithm, policy_kwargs=dict(task_names=["dmc/a-b-v0", "c"]), **SETTINGS[algorithm])
    model.learn(24)
    before = [plans(model, observations(task)) for task in range(2)]
    old, moments = model.policy, model.policy.model_optimizer.state_dict()["state"]
    assert model.add_task(like="a-b", name="d") == 2 and model.policy.task_names == ["dmc/a-b-v0", "c", "d"]
    for task, like in ((0, 0), (1, 1), (2, 0)):
        np.testing.assert_array_equal(plans(model, observations(task)), before[like])
    model.learning_starts = 5
    assert model.add_task(like=1, observation_dim=5, action_dim=4, gamma=0.9) == 3 and model.learning_starts == 0
    assert model.observation_space["obs"].shape == (5,) and model.action_space.shape == (4,)
    world = model.policy.world_model
    assert world.action_masks.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert world.gammas.flatten().tolist() == pytest.approx([0.99, 0.95, 0.99, 0.9])
    own = dict(model.policy.named_parameters())
    for index, (name, parameter) in enumerate(
        (n, p) for n, p in old.named_parameters() if p in old.model_optimizer.state
    ):
        new = model.policy.model_optimizer.state[own[name]]["exp_avg"]
        assert new.abs().sum() == pytest.approx(
            old.model_optimizer.state[parameter]["exp_avg"].abs().sum().item(), rel=1e-4
        )
        assert index < len(moments) and new.shape == own[name].shape
    # the random numbers of plans have another shape now: the values of the same actions tell the same
    z, z_old = (
        p.world_model.encode(p.obs_to_tensor(o)[0])
        for p, o in ((model.policy, padded(observations(0), 5)), (old, observations(0)))
    )
    th.testing.assert_close(z[:, :-1], z_old[:, :-1], rtol=1e-4, atol=1e-6)
    action = th.rand(6, 3)
    wide = th.cat([action, th.rand(6, 1)], dim=1)
    for network in ("next", "reward", "value"):
        th.testing.assert_close(
            getattr(world, network)(z, wide), getattr(old.world_model, network)(z_old, action), rtol=1e-4, atol=1e-5
        )
    th.testing.assert_close(world.act(z, None)[:, :3], old.world_model.act(z_old, None), rtol=1e-4, atol=1e-5)
    if algorithm is MBDPO:
        x, tau = th.randn(2, 6, 3), th.ones(6)
        score = model.planner.predict_score(z, th.cat([x, th.rand(2, 6, 1)], dim=2), tau)
        th.testing.assert_close(score[..., :3], old.planner.predict_score(z_old, x, tau), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_the_new_task_is_trained_alone(algorithm: Any, tmp_path: Path) -> None:
    """Without random actions, in an environment of another size; saved and loaded, it goes on."""
    model = make_agent(algorithm=algorithm, **SETTINGS[algorithm]).learn(24)
    updates = model._n_updates
    task = model.add_task(0, action_dim=2, observation_dim=4, gamma=0.9, n_envs=2)

    def make() -> TaskEnv:
        env = SpaceEnv(spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (2,)))
        return TaskEnv(env, task, model.observation_space, model.action_space)

    model.set_env(vec(make, make))
    embedding = model.policy.world_model.task_embedding.weight.clone()
    model.learn(8)
    assert model._n_updates == updates + 4 and model.replay_buffer.size() == 4
    assert model.replay_buffer.sample(8).observations["task"].unique().tolist() == [task]
    assert (model.policy.world_model.task_embedding.weight[task] != embedding[task]).any()
    model.save(tmp_path / "agent")
    save_agent(model, tmp_path / "file")
    observation = model.env.reset()
    for loaded in (algorithm.load(tmp_path / "agent", model.env), load_agent(tmp_path / "file", model.env)):
        assert_same_state(dict(loaded.policy.state_dict()), dict(model.policy.state_dict()))
        assert_same_state(loaded.policy.world_model.gammas, model.policy.world_model.gammas)
        assert_same_state(
            loaded.predict(observation, deterministic=True), model.predict(observation, deterministic=True)
        )
    loaded.learn(4)


def test_terminations_and_frozen_parts_stay() -> None:
    model = make_agent(episodic="auto")
    model.policy.enable_termination()
    model.policy.world_model.encoder.requires_grad_(False)
    state = model.policy.get_rng_state()
    model.add_task(0)
    assert model.policy.episodic and not any(p.requires_grad for p in model.policy.world_model.encoder.parameters())
    assert len(model.policy.model_optimizer.param_groups) == 4
    np.testing.assert_array_equal(model.policy.get_rng_state(), state)


def test_imported_checkpoints_learn_another_task(tmp_path: Path) -> None:
    """Of 80 tasks, whose names are known: one that was not among them, and one with more actions."""
    space = spaces.Dict(obs=spaces.Box(-np.inf, np.inf, (5,)), task=spaces.Discrete(80))
    sizes: dict[str, Any] = dict(
        latent_dim=16, net_arch=[16, 16], num_q=2, num_bins=11, dropout=0.0, enc_dim=24, task_dim=4
    )
    tasks = dict(action_dims=[1] * 79 + [2], gammas=[0.99] * 30 + [0.95] * 50)
    env = SpaceEnv(space, spaces.Box(-1, 1, (2,)))
    trained = TDMPC2("MultitaskPolicy", env, **SMALL, policy_kwargs={**sizes, **tasks}, device="cpu")
    path = as_official(trained, tmp_path / "agent.pt")
    settings = {name: SMALL[name] for name in ("num_samples", "num_elites", "num_pi_trajs", "iterations", "batch_size")}
    model = import_official(path, action_dims=tasks["action_dims"], device="cpu", **settings)
    assert model.policy.task_index("metaworld/hand-insert-v3") == 79
    assert model.add_task(like="walker-walk", action_dim=3, name="point") == 80
    embedding = model.policy.world_model.task_embedding.weight
    assert th.equal(embedding[80], embedding[1]) and model.policy.world_model.gammas[80] == pytest.approx(0.99)
    model.set_env(TaskEnv(PointEnv(), 80, model.observation_space, model.action_space))
    model.learn(6)
    assert model._n_updates == 6 and not th.equal(embedding[80], embedding[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(like="walker-walk"), "no task 'walker-walk'"),
        (dict(like=2), "no task 2"),
        (dict(like=0, name="b"), "called 'b' already"),
        (dict(like=0, gamma=2.0), "gamma=2.0 is out of range"),
        (dict(like=0, action_dim=0), "action_dim=0 is out of range"),
        (dict(like=0, observation_dim=0), "observation_dim=0 is out of range"),
    ],
)
def test_bad_tasks_change_nothing(arguments: dict[str, Any], words: str) -> None:
    model = make_agent(policy_kwargs=dict(task_names=["a", "b"]))
    before = {
        name: vars(model)[name] for name in ("policy", "observation_space", "action_space", "policy_kwargs", "env")
    }
    with pytest.raises(ValueError) as caught:
        model.add_task(**arguments)
    assert_one_clear_sentence(caught.value, words)
    assert all(vars(model)[name] is value for name, value in before.items())
    with pytest.raises(ValueError) as caught:
        TDMPC2("MlpPolicy", PointEnv(), **SMALL).add_task(0)
    assert_one_clear_sentence(caught.value, "learns one task", "MultitaskPolicy")


def test_larger_sizes_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_agent(verbose=1)
    model.add_task(0)
    assert "columns" not in capsys.readouterr().out
    model.add_task(0, action_dim=5, observation_dim=6)
    assert "observations of 6 numbers in place of 3 and actions of 5 in place of 3" in capsys.readouterr().out
