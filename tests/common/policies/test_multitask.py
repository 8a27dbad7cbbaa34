"""One agent for two tasks whose observations and actions are padded to the same size."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mpc import BMPC, MBDPO, TDMPC2, TDMPCSquare
from sb3_mpc.common.policies.multitask import MultitaskWorldModelPolicy
from tests.support.agents import SMALL, SMALL_POLICY, assert_same_state

ACTION_DIMS, GAMMAS = [3, 1], [0.99, 0.95]


class TwoTasksEnv(gym.Env):
    """
    Reach the origin of a space of three or one dimensions; the other task's dimensions are zero or without effect.

    :param task: 0 or 1; in turn if None
    """

    observation_space = spaces.Dict(obs=spaces.Box(-5, 5, (3,)), task=spaces.Discrete(2))

    def __init__(self, task: int | None = None) -> None:
        self.action_space = spaces.Box(-1, 1, (3,))
        self.fixed_task, self.task = task, 1

    def observe(self) -> dict[str, Any]:
        return dict(obs=self.position.astype(np.float32), task=np.int64(self.task))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.task = 1 - self.task if self.fixed_task is None else self.fixed_task
        self.steps, self.exists = 0, np.arange(3) < ACTION_DIMS[self.task]
        self.position = self.np_random.uniform(-1, 1, 3) * self.exists
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.position = np.clip(self.position + 0.1 * action * self.exists, -5, 5)
        return self.observe(), -float(np.abs(self.position).sum()), False, self.steps >= 10, {}


def make_agent(
    env: Any = None, policy_kwargs: dict[str, Any] | None = None, algorithm: type[TDMPC2] = TDMPC2, **kwargs: Any
) -> TDMPC2:
    tasks = dict(action_dims=ACTION_DIMS, gammas=GAMMAS, task_dim=4)
    policy_kwargs = {**SMALL_POLICY, **tasks, **(policy_kwargs or {})}
    settings = dict(SMALL, learning_starts=8, seed=0, device="cpu", policy_kwargs=policy_kwargs)
    return algorithm(MultitaskWorldModelPolicy, env or TwoTasksEnv(), **{**settings, **kwargs})


def observations(task: int, count: int = 6) -> dict[str, np.ndarray]:
    return dict(obs=np.random.default_rng(0).uniform(-1, 1, (count, 3)).astype(np.float32), task=np.full(count, task))


@pytest.fixture(scope="module")
def trained() -> TDMPC2:
    return make_agent().learn(40)


def test_learning_trains_the_embedding(trained: TDMPC2) -> None:
    before = make_agent().policy.world_model.task_embedding.weight
    after = trained.policy.world_model.task_embedding.weight
    assert (before != after).all()
    assert th.isfinite(after).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_missing_action_dimensions_stay_zero(trained: TDMPC2, deterministic: bool) -> None:
    for task, action_dim in enumerate(ACTION_DIMS):
        # even where a plan of another task is the warm start
        state = (np.full((6, SMALL["horizon"], 3), 0.5, np.float32),)
        actions, (mean,) = trained.predict(observations(task), state, deterministic=deterministic)
        assert (actions[:, :action_dim] != 0).all()
        assert (actions[:, action_dim:] == 0).all()
        assert (mean[..., action_dim:] == 0).all()
        prior = trained.actor.predict(observations(task), deterministic=deterministic)[0]
        assert (prior[:, :action_dim] != 0).all()
        assert (prior[:, action_dim:] == 0).all()


SETTINGS: dict[Any, dict[str, Any]] = {
    TDMPCSquare: dict(scale_threshold=0.0),
    BMPC: dict(reanalyze_interval=2),
    MBDPO: dict(use_score_network=True, score_only_inference=False),
    TDMPC2: {},
}


@pytest.mark.parametrize("algorithm", [TDMPCSquare, BMPC, MBDPO])
def test_other_methods_learn_several_tasks_too(algorithm: Any) -> None:
    model = make_agent(algorithm=algorithm, **SETTINGS[algorithm]).learn(24)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    for task, action_dim in enumerate(ACTION_DIMS):
        actions, _ = model.predict(observations(task), deterministic=False)
        assert (actions[:, :action_dim] != 0).all() and (actions[:, action_dim:] == 0).all()


def test_missing_action_dimensions_do_not_matter(trained: TDMPC2) -> None:
    model = trained.policy.world_model
    z = model.encode(trained.policy.obs_to_tensor(observations(1))[0])
    action = th.rand(6, 3)
    other = action + th.tensor([0.0, 0.5, -0.5])
    for network in (model.next, model.reward, model.value):
        assert th.equal(network(z, action), network(z, other))
    assert not th.equal(model.reward(z, action), model.reward(z, action + th.tensor([0.5, 0.0, 0.0])))


def test_tasks_have_their_own_discount_and_embedding(trained: TDMPC2) -> None:
    model = trained.policy.world_model
    zs = [model.encode(trained.policy.obs_to_tensor(observations(task))[0]) for task in range(2)]
    for task, z in enumerate(zs):
        assert model.discount(z, 0.5).unique().tolist() == pytest.approx([GAMMAS[task]])
        assert model.num_actions(z).unique().tolist() == [ACTION_DIMS[task]]
        assert th.equal(model.next(z, th.zeros(6, 3))[..., -1], z[..., -1])
    assert not th.equal(zs[0][:, :-1], zs[1][:, :-1])


def test_an_environment_of_each_task_side_by_side() -> None:
    model = make_agent(DummyVecEnv([lambda: TwoTasksEnv(0), lambda: TwoTasksEnv(1)])).learn(40)
    batch = model.replay_buffer.sample(64)
    assert set(batch.observations["task"].unique().tolist()) == {0, 1}
    parts = [observations(task, count=1) for task in range(2)]
    actions, _ = model.predict({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    assert (actions[0] != 0).all()
    assert (actions[1, 1:] == 0).all()


def test_embeddings_are_kept_short() -> None:
    """After an update and in loaded weights, as official ones may be longer; looking one up changes nothing."""
    agent = make_agent(learning_rate=0.0)
    model = agent.policy.world_model
    long = {**model.state_dict(), "task_embedding.weight": th.tensor([[3.0, 0, 0, 4], [0.6, 0, 0, 0.7]])}
    model.load_state_dict(long)
    short = th.tensor([[0.6, 0, 0, 0.8], [0.6, 0, 0, 0.7]])
    th.testing.assert_close(model.task_embedding.weight.data, short)
    agent.learn(12)
    with th.no_grad():
        model.task_embedding.weight.copy_(long["task_embedding.weight"])
    z = model.encode(agent.policy.obs_to_tensor(observations(0))[0])
    assert model.inputs(z)[:, -4:].norm(dim=1).tolist() == pytest.approx([5.0] * 6)
    batch = agent.replay_buffer.sample(8)._replace(buffer_index=None)
    agent.update(batch, agent.draw_noise(8))
    th.testing.assert_close(model.task_embedding.weight.data, short)
    before = model.task_embedding.weight.clone()
    model.constrain()
    assert th.equal(model.task_embedding.weight, before)  # a resumed run keeps its bits


def test_saved_agents_go_on(trained: TDMPC2, tmp_path: Path) -> None:
    trained.save(tmp_path / "agent")
    loaded = TDMPC2.load(tmp_path / "agent", env=TwoTasksEnv(), device="cpu")
    trained.policy.save(tmp_path / "policy")
    policy = MultitaskWorldModelPolicy.load(tmp_path / "policy", device="cpu")
    for task in range(2):
        expected = trained.predict(observations(task), deterministic=True)
        assert_same_state(loaded.predict(observations(task), deterministic=True), expected)
        assert_same_state(policy.predict(observations(task), deterministic=True), expected)
    assert_same_state(loaded.policy.model_optimizer.state_dict(), trained.policy.model_optimizer.state_dict())
    loaded.learn(12, reset_num_timesteps=False)


def test_the_state_dict_holds_weights_only(trained: TDMPC2) -> None:
    assert all(value.is_floating_point() for value in trained.policy.state_dict().values())
    assert not any("mask" in name or "gamma" in name for name in trained.policy.state_dict())


def test_terminations_can_be_predicted() -> None:
    model = make_agent(episodic=True).learn(20)
    assert [group["lr_scale"] for group in model.policy.model_optimizer.param_groups] == [0.3, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("tasks", [dict(gammas=[0.9]), dict(action_dims=[3, 2, 1])])
def test_incomplete_tasks_are_refused(tasks: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one entry of action_dims and gammas for each task"):
        make_agent(policy_kwargs=tasks)


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_padded_actions_change_nothing(algorithm: Any) -> None:
    """
    Not the targets, losses and gradients of an update, nor a plan: neither what is stored, nor what is drawn there.
    """

    def updated(change: float) -> tuple[dict[str, th.Tensor], dict[str, th.Tensor], th.Tensor]:
        model = make_agent(DummyVecEnv([lambda: TwoTasksEnv(1)]), algorithm=algorithm, **SETTINGS[algorithm]).learn(24)
        policy = model.policy
        batch, noise = model.replay_buffer.sample(8)._replace(buffer_index=None), model.draw_noise(8)

        def shifted(x: Any) -> Any:
            if isinstance(x, dict):
                return {name: shifted(part) for name, part in x.items()}
            if not isinstance(x, th.Tensor) or x.dim() < 2 or x.shape[-1] != 3 or not x.is_floating_point():
                return x
            return x + change * th.tensor([0.0, 1, -1])

        batch = batch._replace(
            actions=shifted(batch.actions), plans=batch.plans if batch.plans is None else shifted(batch.plans)
        )
        noise = type(noise)(*map(shifted, noise))
        next_z = policy.world_model.encode({key: part[1:] for key, part in batch.observations.items()})
        target = model.value_target(next_z, batch, noise)
        logs = model.update(batch, noise)
        planner = policy.planner.draw(4, th.Generator().manual_seed(0), explore=True)
        z = policy.world_model.encode(policy.obs_to_tensor(observations(1, 4))[0])
        plan = policy.planner.plan(
            z, th.zeros(4, 2, 3) + change * th.tensor([0.0, 1, -1]), type(planner)(*map(shifted, planner))
        )
        return dict(policy.state_dict()), {**logs, **plan._asdict()}, target

    (weights, logs, target), (weights2, logs2, target2) = updated(0.0), updated(0.3)
    th.testing.assert_close(target2, target)
    for name, value in {**weights, **logs}.items():
        if name not in ("pi_loss", "pi_entropy", "pi_prior_loss"):  # with constants of the padded dimensions
            th.testing.assert_close(
                {**weights2, **logs2}[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_divergence_of_bmpc_counts_the_task_s_own_actions() -> None:
    """Known values: the policy is N(0, 1) in a padded dimension, the plan has no spread there."""
    model = make_agent(algorithm=BMPC)
    world = model.policy.world_model
    z = world.encode(model.policy.obs_to_tensor(observations(1, 1))[0])
    mean, std = world.mask_gaussian(z, th.tensor([[0.5, 0.2, 0.0]]), th.tensor([[0.3, 0.0, 0.0]]))
    assert mean.tolist() == [[0.5, 0, 0]] and std[0].tolist() == pytest.approx([0.3, 1, 1])
    own, log_std = world.gaussian(z)
    assert own[0, 1:].tolist() == [0, 0] and log_std[0, 1:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("num_tasks", "model_size", "latent_dim", "task_dim", "parameters"),
    [
        (30, 1, 128, 96, 1_426_427),
        (30, 5, 512, 64, 5_241_066),
        (30, 19, 512, 64, None),
        (80, 19, 768, 96, 18_970_218),
        (80, 5, 512, 96, 5_389_930),
    ],
)
def test_default_sizes_are_those_of_the_papers(
    num_tasks: int, model_size: int, latent_dim: int, task_dim: int, parameters: int | None
) -> None:
    """The numbers of trained parameters are those of the official models of mt30 and mt80."""
    observed = 24 if num_tasks == 30 else 39
    space = spaces.Dict(obs=spaces.Box(-1, 1, (observed,)), task=spaces.Discrete(num_tasks))
    tasks: dict[str, Any] = dict(action_dims=[6] * num_tasks, gammas=[0.99] * num_tasks)
    box = spaces.Box(-1, 1, (6,))
    world = MultitaskWorldModelPolicy(space, box, lambda _: 3e-4, model_size=model_size, **tasks).world_model
    assert (world.latent_dim, world.task_embedding.embedding_dim) == (latent_dim, task_dim)
    count = sum(parameter.numel() for parameter in world.parameters() if parameter.requires_grad)
    assert parameters is None or count == parameters


class OppositeEnv(TwoTasksEnv):
    """The same state in both tasks, whose rewards are opposite: the action in one of them, and its negative."""

    def observe(self) -> dict[str, Any]:
        return dict(obs=np.ones(3, np.float32), task=np.int64(self.task))

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return (observation, float(action[0]) * (1 - 2 * self.task), *rest)  # type: ignore[return-value]


@pytest.mark.slow
def test_contradictory_tasks_are_both_learned() -> None:
    """Nothing but the embedding tells them apart, in the reward, the values and the actions."""
    env = DummyVecEnv([lambda: OppositeEnv(0), lambda: OppositeEnv(1)])
    fast = dict(learning_rate=1e-2, reward_coef=1.0, value_coef=1.0, learning_starts=100, pretrain_gradient_steps=200)
    model = make_agent(env, policy_kwargs=dict(vmin=-3.0, vmax=3.0, num_bins=21, task_dim=8), **fast).learn(102)
    world = model.policy.world_model
    for task, sign in enumerate((1, -1)):
        observation = dict(obs=np.ones((2, 3), np.float32), task=np.full(2, task))
        z = world.encode(model.policy.obs_to_tensor(observation)[0])
        action = th.tensor([[0.8, 0, 0], [-0.8, 0, 0]])
        rewards = world.two_hot.decode(world.reward(z, action)).flatten().tolist()
        assert sign * rewards[0] > 0.4 and sign * rewards[1] < -0.4
        state = None
        for _ in range(3):
            actions, state = model.predict(observation, state, deterministic=True)
        assert (sign * actions[:, 0] > 0.7).all()
