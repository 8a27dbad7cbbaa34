"""What a drop-in replacement for Stable-Baselines3's SAC owes its users, on every algorithm class."""

import copy
import importlib
import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule, polyak_update
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize, VecTransposeImage
from torch import nn

import sb3_mpc
from sb3_mpc import BMPC, MBDPO
from tests.agents import SMALL, PointEnv, Recorder, SpaceEnv, assert_same_state, make_agent, observations_of, vec

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 40, 1), np.uint8)
FLOAT64 = spaces.Box(-1.0, 1.0, (2,), np.float64)
SAC_ONLY = {"ent_coef", "target_update_interval", "target_entropy", "use_sde", "sde_sample_freq", "use_sde_at_warmup"}

# --- constructor ------------------------------------------------------------------------------------------------------


def test_arguments_are_those_of_sac_and_have_defaults(algorithm: Any) -> None:
    parameters = inspect.signature(algorithm.__init__).parameters.values()
    ours = [
        p for p in parameters if p.kind is not p.VAR_KEYWORD
    ]  # which there is to refuse unknown ones in plain words
    sacs = [name for name in inspect.signature(SAC.__init__).parameters if name not in SAC_ONLY]
    names = [parameter.name for parameter in ours]
    assert [name for name in names if name in sacs] == sacs  # all of them, in the same order
    assert names[-1] == "_init_setup_model"  # load() relies on it
    assert all(p.default is not inspect.Parameter.empty for p in ours if p.name not in ("self", "policy", "env"))
    positional = [p.name for p in ours if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == sacs[: len(positional)]  # positional calls mean the same


def test_arguments_of_learn_are_those_of_sac(algorithm: Any) -> None:
    ours, sacs = inspect.signature(algorithm.learn).parameters, inspect.signature(SAC.learn).parameters
    assert list(ours) == list(sacs)
    for name, parameter in sacs.items():
        assert ours[name].default == (algorithm.__name__ if name == "tb_log_name" else parameter.default)


def test_environment_may_be_a_name_an_environment_or_vectorised(algorithm: Any) -> None:
    for env in ("Pendulum-v1", gym.make("Pendulum-v1"), make_vec_env("Pendulum-v1", n_envs=2)):
        model = make_agent(algorithm, env)
        assert model.get_env().num_envs == model.n_envs


def test_buffer_size_one_and_learning_rate_zero(algorithm: Any) -> None:
    model = make_agent(
        algorithm, PointEnv(), buffer_size=1, batch_size=1, learning_rate=0.0, learning_starts=1, tau=0.0
    )
    before = copy.deepcopy(model.get_parameters()["policy"])
    model.learn(10)
    assert model._n_updates == 9
    # These are not learned by gradient, or (the student of FacTDMPC) at a rate of their own
    statistics = ("running_scale", "energy_mean", "energy_std", "student", "spread")
    scale = {name for name in before if any(statistic in name for statistic in statistics)}
    after = model.get_parameters()["policy"]
    assert_same_state(
        {k: v for k, v in before.items() if k not in scale}, {k: v for k, v in after.items() if k not in scale}
    )


def test_buffer_size_is_divided_by_the_environments(algorithm: Any) -> None:
    model = make_agent(algorithm, vec(PointEnv, PointEnv), buffer_size=10)
    model.learn(30)
    assert model.replay_buffer.buffer_size == 5
    assert model.replay_buffer.observations.shape[:2] == (5, 2)
    assert model.replay_buffer.full


def test_learning_rate_schedule_reaches_every_group_and_keeps_the_scale_of_the_encoder(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), learning_rate=LinearSchedule(1e-2, 1e-3, 1.0), enc_lr_scale=0.5)
    model.learn(20)
    rate = model.lr_schedule(model._current_progress_remaining)
    assert rate == pytest.approx(1e-3)
    model_rates = {group["lr"] for group in model.policy.model_optimizer.param_groups}
    assert sorted(model_rates) == pytest.approx([0.5 * rate, rate])
    assert [group["lr"] for group in model.policy.pi_optimizer.param_groups] == pytest.approx([rate])
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(rate)
    encoder = {id(parameter) for parameter in model.policy.world_model.encoder.parameters()}
    for group in model.policy.model_optimizer.param_groups:
        inside = {id(parameter) in encoder for parameter in group["params"]}
        assert inside == {group["lr"] == pytest.approx(0.5 * rate)}


def test_constant_schedule_object(algorithm: Any) -> None:
    """The zoo wraps every learning rate in one."""
    model = make_agent(algorithm, PointEnv(), learning_rate=ConstantSchedule(1e-3)).learn(10)
    assert model.policy.pi_optimizer.param_groups[0]["lr"] == 1e-3


def test_wrong_train_freq_is_refused_by_sb3(algorithm: Any) -> None:
    for train_freq in ("4", ("1", "episode"), "non_sense", (1, "close")):
        with pytest.raises(ValueError, match="train_freq"):
            make_agent(algorithm, PointEnv(), train_freq=train_freq)


def test_policy_names(algorithm: Any) -> None:
    assert {"MlpPolicy", "CnnPolicy", "MultiInputPolicy"} <= set(algorithm.policy_aliases)
    with pytest.raises(ValueError, match="unknown"):
        make_agent(algorithm, PointEnv(), policy="MlpPolitics")
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make_agent(algorithm, SpaceEnv(spaces.Dict(a=BOX), BOX), policy="MlpPolicy")
    policy_class = algorithm.policy_aliases["MlpPolicy"]
    assert type(make_agent(algorithm, PointEnv(), policy=policy_class).policy) is policy_class


@pytest.mark.parametrize(
    ("length", "gamma", "learning_starts"), [(100, 0.95, 1000), (500, 0.99, 2500), (5000, 0.995, 25_000)]
)
def test_gamma_and_learning_starts_follow_the_episode_length(
    algorithm: Any, tmp_path: Any, length: int, gamma: float, learning_starts: int
) -> None:
    env = gym.wrappers.TimeLimit(PointEnv(10**9), length)
    model = make_agent(algorithm, env, gamma="auto", learning_starts="auto")
    assert type(model.gamma) is float and model.gamma == pytest.approx(gamma)
    assert type(model.learning_starts) is int and model.learning_starts == learning_starts
    # settled once: a shorter environment at load time changes nothing
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=gym.wrappers.TimeLimit(PointEnv(10**9), 20))
    assert (loaded.gamma, loaded.learning_starts) == (model.gamma, model.learning_starts)


def test_automatic_settings_without_a_time_limit(algorithm: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_agent(algorithm, PointEnv(), gamma="auto", learning_starts="auto")
    assert 0.9 <= model.gamma < 1.0
    assert model.learning_starts >= 1000


def test_own_gamma_and_learning_starts_are_kept(algorithm: Any, tmp_path: Any) -> None:
    make_agent(algorithm, "Pendulum-v1", gamma=0.5, learning_starts=3).save(tmp_path / "model")
    model = algorithm.load(tmp_path / "model")
    assert (model.gamma, model.learning_starts) == (0.5, 3)


def test_derived_settings_do_not_pile_up_through_saving(algorithm: Any, tmp_path: Any) -> None:
    """More iterations are planned for 20 and more action dimensions, but not more with every load."""
    env = SpaceEnv(BOX, spaces.Box(-1.0, 1.0, (20,), np.float32))
    model = make_agent(algorithm, env, iterations=2)
    for _ in range(2):
        model.save(tmp_path / "model")
        loaded = algorithm.load(tmp_path / "model", env=env)
        assert loaded.iterations == model.iterations == 2
        assert loaded.policy.planner.iterations == model.policy.planner.iterations
        model = loaded


def test_sizes_and_optimisers_in_policy_kwargs(algorithm: Any) -> None:
    for policy_kwargs in (
        dict(net_arch=[]),
        dict(net_arch=[8, 8]),
        dict(net_arch=dict(pi=[8, 4], qf=[8])),
        dict(n_critics=1),
        dict(n_critics=3),
        dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=None),
        dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.5)),
    ):
        model = make_agent(algorithm, PointEnv(), policy_kwargs=policy_kwargs).learn(10)
        if "n_critics" in policy_kwargs:
            assert model.policy.world_model.num_q == policy_kwargs["n_critics"]
        for optimizer in (model.policy.model_optimizer, model.policy.pi_optimizer):
            assert type(optimizer) is policy_kwargs.get("optimizer_class", th.optim.Adam)
            if policy_kwargs.get("optimizer_kwargs"):
                assert all(group["weight_decay"] == 0.5 for group in optimizer.param_groups)


def test_arguments_of_the_user_stay_as_they_are(algorithm: Any) -> None:
    policy_kwargs = dict(
        latent_dim=8, net_arch=[8], optimizer_kwargs=dict(weight_decay=0.1), features_extractor_kwargs={}
    )
    replay_buffer_kwargs: dict[str, Any] = {}
    kept = copy.deepcopy(policy_kwargs)
    for seed in range(2):  # a second agent from the same dicts
        env = PointEnv(3, terminate=True)
        settings = dict(SMALL, policy_kwargs=policy_kwargs, replay_buffer_kwargs=replay_buffer_kwargs)
        algorithm("MlpPolicy", env, learning_starts=8, seed=seed, **settings).learn(10)
        assert policy_kwargs == kept and replay_buffer_kwargs == {}


def test_no_warnings(algorithm: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_agent(algorithm, PointEnv(), seed=0).learn(20)


# --- observation and action spaces ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        FLOAT64,
        spaces.Box(-1.0, 1.0, (2, 3), np.float32),
        spaces.Box(0, 9, (4,), np.int64),
        spaces.Discrete(4),
        spaces.MultiDiscrete([4, 3]),
        spaces.MultiBinary(8),
        spaces.MultiBinary((3, 2)),
        spaces.Box(-1.0, 1.0, (), np.float64),
        spaces.Dict(vector=BOX, double=FLOAT64, number=spaces.Discrete(4)),
        spaces.Dict(number=spaces.Box(-1.0, 1.0, (), np.float64), vector=BOX),
        spaces.Dict(vector=BOX, image=IMAGE),
        IMAGE,
    ],
    ids=str,
)
def test_observation_spaces(algorithm: Any, space: spaces.Space) -> None:
    policy = {spaces.Dict: "MultiInputPolicy"}.get(type(space), "CnnPolicy" if space is IMAGE else "MlpPolicy")
    model = make_agent(algorithm, SpaceEnv(space, BOX), policy=policy, learning_starts=2, train_freq=4, buffer_size=100)
    model.learn(12)
    assert model._n_updates == 3
    space.seed(0)
    sample = space.sample()
    before = copy.deepcopy(sample)
    action, _ = model.predict(sample, deterministic=True)
    assert BOX.contains(action)
    assert_same_state(before, sample)  # predict changes nothing in it
    batch = model.get_env().reset()
    assert model.predict(batch)[0].shape == (1, 2)


def test_images_may_come_channels_last_or_first(algorithm: Any) -> None:
    env = SpaceEnv(IMAGE, BOX)
    model = make_agent(algorithm, env, policy="CnnPolicy")
    assert isinstance(model.get_env(), VecTransposeImage)
    image, _ = env.reset(seed=0)
    first, _ = model.predict(image, deterministic=True)
    second, _ = model.predict(image.transpose(2, 0, 1), deterministic=True)
    np.testing.assert_array_equal(first, second)


def test_normalize_images_reaches_the_encoder(algorithm: Any) -> None:
    image = SpaceEnv(IMAGE, BOX)
    models = [
        make_agent(
            algorithm, image, policy="CnnPolicy", seed=0, buffer_size=10, policy_kwargs=dict(normalize_images=normalize)
        )
        for normalize in (True, False)
    ]
    raw = th.as_tensor(models[0].get_env().reset())
    for model in models:
        model.policy.set_training_mode(False)
    z = [model.policy.world_model.encode(pixels) for model, pixels in zip(models, (raw, raw / 255.0), strict=True)]
    assert th.allclose(z[0], z[1], atol=1e-6)


def test_custom_features_extractor_gets_flat_batches(algorithm: Any) -> None:
    shapes = set()

    class Extractor(BaseFeaturesExtractor):
        """Two features of an observation."""

        def __init__(self, observation_space: spaces.Space, factor: float = 1.0) -> None:
            super().__init__(observation_space, 2)
            self.factor = factor
            self.linear = nn.Linear(get_flattened_obs_dim(observation_space), 2)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            shapes.add(tuple(observations.shape[1:]))
            return self.linear(self.factor * observations)

    policy_kwargs = dict(features_extractor_class=Extractor, features_extractor_kwargs=dict(factor=2.0))
    model = make_agent(algorithm, PointEnv(), policy_kwargs=policy_kwargs)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(12)
    assert shapes == {(3,)}
    extractor = next(module for module in model.policy.modules() if isinstance(module, Extractor))
    assert extractor.factor == 2.0
    name = next(name for name in before if name.endswith("linear.weight") and before[name].shape == (2, 3))
    assert not th.equal(before[name], model.policy.state_dict()[name])  # it learns


class BatchNormExtractor(BaseFeaturesExtractor):
    """Batch statistics and dropout, both of which depend on the mode."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, get_flattened_obs_dim(observation_space))
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(self.features_dim), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def test_acting_is_done_in_evaluation_mode(algorithm: Any) -> None:
    policy_kwargs = dict(features_extractor_class=BatchNormExtractor)
    model = make_agent(algorithm, PointEnv(), policy_kwargs=policy_kwargs, gradient_steps=0)
    norm = next(module for module in model.policy.modules() if isinstance(module, nn.BatchNorm1d))
    observation = observations_of(model.get_env(), 4)
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        model.policy.predict(observation)
    model.learn(20)
    assert th.equal(norm.running_mean, th.zeros(3))  # neither collecting nor predicting moved it
    model.gradient_steps = 1
    model.learn(20, reset_num_timesteps=False)
    assert not th.equal(norm.running_mean, th.zeros(3))  # updates did


def test_dict_of_one_vector_equals_the_vector(algorithm: Any) -> None:
    """As SB3 promises: MultiInputPolicy on {"vec": x} is MlpPolicy on x, before and after training."""

    class DictPoint(gym.ObservationWrapper):
        """The observation inside a dict."""

        def __init__(self) -> None:
            super().__init__(PointEnv())
            self.observation_space = spaces.Dict(vec=self.env.observation_space)

        def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
            return {"vec": observation}

    plain = make_agent(algorithm, PointEnv(), seed=1)
    nested = make_agent(algorithm, DictPoint(), policy="MultiInputPolicy", seed=1)
    observation = observations_of(plain.get_env(), 3)
    for _ in range(2):
        first, _ = plain.predict(observation, deterministic=True)
        second, _ = nested.predict({"vec": observation}, deterministic=True)
        np.testing.assert_array_equal(first, second)
        plain.learn(20)
        nested.learn(20)


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        FLOAT64,
        spaces.Box(-1.0, 1.0, (2, 2), np.float32),
        spaces.Box(np.array([-3, 1, -5], np.float32), np.array([2, 4, -4], np.float32)),
        type("SubclassedBox", (spaces.Box,), {})(-1.0, 1.0, (2,), np.float32),
    ],
    ids=["box", "float64", "two axes", "uneven bounds", "subclass"],
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_action_spaces(algorithm: Any, space: spaces.Box, deterministic: bool) -> None:
    env = Recorder(SpaceEnv(BOX, space))
    model = make_agent(algorithm, env).learn(20)
    single, _ = model.predict(observations_of(env, 1)[0], deterministic=deterministic)
    assert isinstance(single, np.ndarray) and single.shape == space.shape and single.dtype == space.dtype
    many, _ = model.predict(observations_of(env, 50), deterministic=deterministic)
    assert many.shape == (50, *space.shape) and many.dtype == space.dtype
    assert all(space.contains(action) for action in (single, *many))
    assert all(space.contains(action.astype(space.dtype)) for _, action, *_ in env.log)
    stored = model.replay_buffer.actions[:20, 0].reshape(20, *space.shape)
    sent = np.stack([action for _, action, *_ in env.log])
    np.testing.assert_allclose(space.low + (stored + 1) / 2 * (space.high - space.low), sent, atol=1e-5)


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_takes_one_observation_or_a_batch(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), learning_rate=1e-2, seed=0).learn(40)
    observations = observations_of(model.get_env(), 5)
    together, _ = model.predict(observations, deterministic=True)
    assert together.shape == (5, 2)
    alone = [model.predict(observation, deterministic=True)[0] for observation in observations]
    # Diffusion weighs standardised returns, so that rounding counts for more where all returns are nearly the same
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-3 if algorithm is MBDPO else 1e-5)
    assert len({tuple(action) for action in alone}) == 5  # an agent that looks at its observation


def test_predict_on_reset_tuple_is_refused(algorithm: Any) -> None:
    env = PointEnv()
    model = make_agent(algorithm, env)
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict(env.reset())


def test_predict_of_model_and_policy_are_the_same(algorithm: Any) -> None:
    model = make_agent(algorithm, vec(PointEnv, PointEnv))
    observation = observations_of(model.get_env(), 2)
    first, state_1 = model.predict(observation, deterministic=True)
    second, state_2 = model.policy.predict(observation, deterministic=True)
    np.testing.assert_array_equal(first, second)
    assert_same_state(state_1, state_2)
    env = vec(lambda: PointEnv(start=0.3), lambda: PointEnv(start=-0.2))
    assert evaluate_policy(model, env, 4, warn=False) == evaluate_policy(model.policy, env, 4, warn=False)


def test_state_is_the_plan_with_one_row_for_each_environment(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), horizon=3)
    _, state = model.predict(observations_of(model.get_env(), 4), deterministic=True)
    assert isinstance(state, tuple)
    assert all(isinstance(part, np.ndarray) and part.shape[0] == 4 for part in state)
    assert state[0].shape == (4, 3, 2) and state[0].dtype == np.float32
    assert np.abs(state[0]).max() <= 1.0


def test_state_is_a_warm_start(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), num_pi_trajs=0)
    observations = observations_of(model.get_env(), 3)
    cold, state = model.predict(observations, deterministic=True)
    warm, _ = model.predict(observations, state=state, deterministic=True)
    assert not np.allclose(cold, warm)  # it matters
    zero = tuple(np.zeros_like(part) for part in state)
    np.testing.assert_array_equal(model.predict(observations, state=zero, deterministic=True)[0], cold)
    # nothing stays behind
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], cold)


def test_episode_start_clears_its_row_only(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), num_pi_trajs=0)
    observations = observations_of(model.get_env(), 3)
    cold, state = model.predict(observations, deterministic=True)
    warm, _ = model.predict(observations, state=state, episode_start=np.zeros(3, bool), deterministic=True)
    mixed, _ = model.predict(
        observations, state=state, episode_start=np.array([False, True, False]), deterministic=True
    )
    np.testing.assert_array_equal(mixed[[0, 2]], warm[[0, 2]])
    np.testing.assert_array_equal(mixed[1], cold[1])


def test_arrays_of_the_caller_are_left_alone(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    observations = observations_of(model.get_env(), 3)
    _, state = model.predict(observations, deterministic=True)
    start = np.array([True, False, False])
    kept = copy.deepcopy((observations, state, start))
    _, new_state = model.predict(observations, state=state, episode_start=start, deterministic=True)
    assert_same_state(kept, (observations, state, start))
    new_state[0][:] = 0.0  # a copy, not a view of something inside
    assert_same_state(kept, (observations, state, start))
    action, _ = model.predict(observations, state=state, episode_start=start, deterministic=True)
    action[:] = 0.0
    again, _ = model.predict(observations, state=state, episode_start=start, deterministic=True)
    assert np.abs(again).max() > 0


def random_states() -> tuple[Any, ...]:
    """:return: states of the global random number generators"""
    return th.random.get_rng_state().clone(), np.random.get_state()[1].copy(), np.random.get_state()[2]  # type: ignore[index]


def test_deterministic_is_a_pure_function(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), seed=0)
    observations = observations_of(model.get_env(), 3)
    before = random_states()
    actions = [model.predict(observations, deterministic=True)[0] for _ in range(3)]
    assert_same_state(before, random_states())
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])
    # it leaves no mark on the stochastic actions either
    twin = make_agent(algorithm, PointEnv(), seed=0)
    first, _ = model.predict(observations, deterministic=False)
    second, _ = twin.predict(observations, deterministic=False)
    np.testing.assert_array_equal(first, second)


def test_stochastic_actions_differ_and_follow_the_seed(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), seed=0)
    observations = observations_of(model.get_env(), 3)
    first = [model.predict(observations)[0] for _ in range(2)]
    assert not np.allclose(first[0], first[1])
    model.set_random_seed(0)
    th.rand(3), np.random.rand(3)  # what others draw has no influence
    second = [model.predict(observations)[0] for _ in range(2)]
    np.testing.assert_array_equal(first, second)
    model.set_random_seed(1)
    assert not np.allclose(first[0], model.predict(observations)[0])


def test_predict_keeps_no_gradients(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    model.predict(observations_of(model.get_env(), 2))
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_actor_can_be_exported(algorithm: Any, tmp_path: Path) -> None:
    """SB3's guide traces ``policy.actor``: observation in, normalised action out."""

    class Exported(nn.Module):
        """As in the guide."""

        def __init__(self, actor: nn.Module) -> None:
            super().__init__()
            self.actor = actor

        def forward(self, observation: th.Tensor) -> th.Tensor:
            return self.actor(observation, deterministic=True)

    model = make_agent(algorithm, PointEnv()).learn(12)
    exported = Exported(model.policy.actor)
    observation = th.as_tensor(observations_of(model.get_env(), 4))
    expected = exported(observation)
    assert expected.shape == (4, 2) and expected.abs().max() <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        th.jit.trace(exported.eval(), observation[:1]).save(tmp_path / "actor.pt")
        traced = th.jit.load(tmp_path / "actor.pt")
    assert th.allclose(traced(observation), expected, atol=1e-6)
    program = th.export.export(exported, (observation,), dynamic_shapes=dict(observation={0: th.export.Dim("batch")}))
    assert th.allclose(program.module()(observation[:2]), expected[:2], atol=1e-6)
    assert model.actor is not None  # as for SAC


def test_actor_and_critics_are_parts_of_the_model(algorithm: Any) -> None:
    """What SAC's users do with them leaves the other parts alone."""
    model = make_agent(algorithm, PointEnv()).learn(12)
    policy, model_before = model.policy, copy.deepcopy(model.policy.world_model.state_dict())
    assert policy.actor is policy.actor and model.critic is policy.critic
    ids = [{id(p) for p in part.parameters()} for part in (policy.actor, policy.critic, policy.critic_target)]
    assert all(ids) and not (ids[0] & ids[1] or ids[1] & ids[2] or ids[0] & ids[2])
    polyak_update(policy.critic.parameters(), policy.critic_target.parameters(), 1.0)
    assert_same_state(policy.critic_target.q_networks.state_dict(), policy.critic.q_networks.state_dict())
    after = policy.world_model.state_dict()
    assert_same_state(*({k: v for k, v in s.items() if "q_target" not in k} for s in (after, model_before)))
    for copied in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert copied.actor.world_model is copied.acting()[0] is not policy.acting()[0]
    actions = th.zeros(2, 2)
    observations = th.as_tensor(observations_of(model.get_env(), 2))
    if algorithm is not BMPC:  # whose values are those of states
        assert th.equal(policy.critic.q1_forward(observations, actions), policy.critic(observations, actions)[0])
    assert len(list(policy.critic(observations, actions))) == policy.critic.n_critics


class HalfFrozen(BaseFeaturesExtractor):
    """As with a network that was trained before."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 8)
        self.back, self.head = nn.Linear(observation_space.shape[0], 8), nn.Linear(8, 8)
        self.back.requires_grad_(False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.head(self.back(observations).relu())


def test_frozen_parameters(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), policy_kwargs=dict(features_extractor_class=HalfFrozen))
    extractor = model.policy.world_model.encoder.features_extractor
    back, head = (copy.deepcopy(part.state_dict()) for part in (extractor.back, extractor.head))
    model.learn(20)
    assert_same_state(extractor.back.state_dict(), back)
    assert not th.equal(extractor.head.weight, head["weight"])
    for parameter in model.actor.prior_net.parameters():
        parameter.requires_grad_(False)
    model.learn(10)


def test_import_of_policies() -> None:
    for name in ("tdmpc2", "tdmpc_square", "bmpc", "mbdpo", "fac_tdmpc"):
        module = importlib.import_module(f"sb3_mpc.{name}")
        for alias in ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"):
            assert getattr(module, alias) is sb3_mpc.ALGORITHMS[name].policy_aliases[alias]


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_envs", "steps", "settings", "updates"),
    [
        (1, 20, dict(learning_starts=8), 12),
        (1, 20, dict(learning_starts=8, train_freq=4, gradient_steps=3), 9),
        (1, 20, dict(learning_starts=0, train_freq=(4, "step"), gradient_steps=-1), 20),
        (2, 20, dict(learning_starts=8, gradient_steps=-1), 12),
        (2, 20, dict(learning_starts=8), 6),
        (1, 20, dict(learning_starts=0, train_freq=(1, "episode"), gradient_steps=-1), 20),
        (1, 20, dict(learning_starts=8, gradient_steps=0), 0),
        (1, 20, dict(learning_starts=20), 0),
        (1, 20, dict(learning_starts=8, pretrain_gradient_steps=5), 17),
    ],
)
def test_number_of_updates(algorithm: Any, n_envs: int, steps: int, settings: dict[str, Any], updates: int) -> None:
    model = make_agent(algorithm, vec(*[PointEnv] * n_envs), **settings)
    model.learn(steps)
    assert model.num_timesteps == steps
    assert model._n_updates == updates
    if updates > 0:
        assert model.logger.name_to_value["train/n_updates"] == updates
    # the burst at the end of seeding comes once
    model.learn(4, reset_num_timesteps=False)
    extra = settings.get("gradient_steps", 1)
    if "pretrain_gradient_steps" in settings:
        assert model._n_updates == updates + 4 * extra


def test_automatic_burst_only_with_automatic_learning_starts(algorithm: Any) -> None:
    assert inspect.signature(algorithm.__init__).parameters["pretrain_gradient_steps"].default == "auto"
    model = make_agent(algorithm, gym.wrappers.TimeLimit(PointEnv(10**9), 50), learning_starts="auto", train_freq=500)
    assert model.learning_starts == 1000
    model.learn(1000)
    assert model._n_updates == 0
    model.pretrain_gradient_steps = 30  # the paper's number would take too long here
    model.learn(500, reset_num_timesteps=False)
    assert model._n_updates == 31


def test_actions_are_uniform_before_learning_starts(algorithm: Any) -> None:
    env = Recorder(PointEnv())
    model = make_agent(algorithm, env, learning_starts=200, seed=3).learn(200)
    model.action_space.seed(3)
    expected = [model.action_space.sample() for _ in range(200)]
    np.testing.assert_allclose([action for _, action, *_ in env.log], expected, atol=1e-6)


def test_action_noise_is_added(algorithm: Any) -> None:
    noise = NormalActionNoise(np.full(2, 10.0), np.zeros(2))  # so large that every action is at its bound
    env = Recorder(PointEnv())
    make_agent(algorithm, vec(lambda: env, PointEnv), action_noise=noise, learning_starts=0).learn(8)
    np.testing.assert_allclose([action for _, action, *_ in env.log], [[2.0, 3.0]] * 4, atol=1e-6)


def watch_plans(model: Any, monkeypatch: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    :param model: agent
    :param monkeypatch: pytest's
    :return: list that grows by the warm start and the mean of every plan, both ``[n_envs, H, A]``
    """
    plans, plan = [], model.policy.planner.plan

    def spy(z: th.Tensor, prev_mean: th.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = plan(z, prev_mean, *args, **kwargs)
        plans.append((prev_mean.numpy().copy(), result.mean.numpy().copy()))
        return result

    monkeypatch.setattr(model.policy.planner, "plan", spy)
    return plans


def test_training_uses_a_warm_start_that_follows_the_episodes(algorithm: Any, monkeypatch: Any) -> None:
    model = make_agent(algorithm, vec(lambda: PointEnv(3), lambda: PointEnv(5)), learning_starts=0)
    plans = watch_plans(model, monkeypatch)
    model.learn(14)
    model.learn(14, reset_num_timesteps=False)
    assert len(plans) == 14
    for step, (warm_start, _) in enumerate(plans):
        for env, length in enumerate((3, 5)):
            expected = np.zeros((2, 2)) if step % length == 0 else plans[step - 1][1][env]
            np.testing.assert_array_equal(warm_start[env], expected, err_msg=f"{step=}, {env=}")
    model.learn(4)  # a reset
    assert not plans[14][0].any() and plans[15][0].any()


def test_evaluation_does_not_disturb_training(algorithm: Any) -> None:
    plain = make_agent(algorithm, PointEnv(), seed=0)
    watched = make_agent(algorithm, PointEnv(), seed=0)
    plain.learn(40)
    evaluation = EvalCallback(PointEnv(), eval_freq=3, n_eval_episodes=2, verbose=0, warn=False)
    watched.learn(40, callback=evaluation)
    assert evaluation.n_calls == 40 and np.isfinite(evaluation.last_mean_reward)
    assert_same_state(plain.get_parameters(), watched.get_parameters())
    np.testing.assert_array_equal(plain.replay_buffer.actions[:40], watched.replay_buffer.actions[:40])


def test_alternating_between_environments_mixes_nothing(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), num_pi_trajs=0)
    envs = [PointEnv(start=0.5), PointEnv(start=-0.5)]

    def roll(both: bool) -> list[np.ndarray]:
        used = envs if both else envs[:1]
        observations, states, actions = [env.reset()[0] for env in used], [None] * len(used), []
        for _ in range(4):
            for index, env in enumerate(used):
                action, states[index] = model.predict(observations[index], state=states[index], deterministic=True)
                observations[index] = env.step(action)[0]
                if index == 0:
                    actions.append(action)
        return actions

    np.testing.assert_array_equal(roll(both=False), roll(both=True))


def test_two_runs_with_one_seed_are_equal(algorithm: Any) -> None:
    noise = NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))
    runs = []
    for seed in (0, 0, 1):
        model = make_agent(algorithm, vec(PointEnv, PointEnv), seed=seed, action_noise=noise).learn(40)
        actions = [model.predict(observations_of(model.get_env(), 2), deterministic=False)[0] for _ in range(5)]
        runs.append((model.get_parameters()["policy"], model.replay_buffer.actions[:20], actions))
    assert_same_state(runs[0], runs[1])
    assert not np.array_equal(runs[0][1], runs[2][1])


class Order(BaseCallback):
    """Notes the events and one local variable of each."""

    def __init__(self, stop_at: int = 10**9, answer: Any = False) -> None:
        super().__init__()
        self.events: list[str] = []
        self.stop_at, self.answer = stop_at, answer

    def _on_training_start(self) -> None:
        self.events.append("training_start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> Any:
        self.events.append("step")
        assert self.locals["new_obs"].shape == (1, 3)
        assert {"infos", "dones", "rewards", "actions"} <= self.locals.keys()
        assert self.num_timesteps == self.model.num_timesteps
        return self.answer if self.n_calls >= self.stop_at else True

    def _on_rollout_end(self) -> None:
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


def test_order_of_callbacks(algorithm: Any) -> None:
    callback = Order()
    model = make_agent(algorithm, PointEnv(), train_freq=2)
    assert model.learn(4, callback=callback) is model
    rollout = ["rollout_start", "step", "step", "rollout_end"]
    assert callback.events == ["training_start", *rollout, *rollout, "training_end"]
    seen = []
    model.learn(4, callback=lambda local, _: seen.append(local["self"].num_timesteps) is None)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("answer", [False, np.bool_(0), th.tensor(False)])
def test_callbacks_stop_training_at_once(algorithm: Any, answer: Any) -> None:
    callback, env = Order(stop_at=12, answer=answer), Recorder(PointEnv())
    model = make_agent(algorithm, env).learn(100, callback=[callback])
    assert callback.n_calls == model.num_timesteps == 12
    # and it can go on, with the step at which it was stopped in the replay buffer
    model.learn(5, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.size() == 17
    np.testing.assert_array_equal(model.replay_buffer.observations[:17, 0], [row[0] for row in env.log])


def test_checkpoints_during_training_can_be_loaded(algorithm: Any, tmp_path: Any) -> None:
    env = VecNormalize(vec(PointEnv))
    callback = CheckpointCallback(15, tmp_path, save_replay_buffer=True, save_vecnormalize=True)
    make_agent(algorithm, env).learn(20, callback=callback, progress_bar=True)
    model = algorithm.load(
        tmp_path / "rl_model_15_steps.zip",
        env=VecNormalize.load(tmp_path / "rl_model_vecnormalize_15_steps.pkl", vec(PointEnv)),
    )
    model.load_replay_buffer(tmp_path / "rl_model_replay_buffer_15_steps.pkl")
    assert model.replay_buffer.size() in (14, 15)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 25


def test_logged_values(algorithm: Any, tmp_path: Any) -> None:
    model = make_agent(algorithm, PointEnv(5))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(40, log_interval=4)
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    names = header.split(",")
    assert len(rows) == 2
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/episodes", "time/total_timesteps"} <= set(
        names
    )
    losses = {
        f"train/{name}"
        for name in ("n_updates", "learning_rate", "consistency_loss", "reward_loss", "value_loss", "pi_loss")
    }
    assert losses | {"train/grad_norm", "train/pi_scale"} <= set(names)
    last = dict(zip(names, rows[-1].split(","), strict=True))
    assert float(last["rollout/ep_len_mean"]) == 5.0
    assert float(last["time/total_timesteps"]) == 40
    assert all(np.isfinite(float(last[name])) for name in names if name.startswith("train/"))


def test_logging_may_be_switched_off(algorithm: Any, tmp_path: Any) -> None:
    model = make_agent(algorithm, PointEnv(5))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(20, log_interval=None)
    assert (tmp_path / "progress.csv").read_text() == ""


def test_tensorboard_folder_is_named_after_the_class(algorithm: Any, tmp_path: Any) -> None:
    pytest.importorskip("tensorboard")
    model = make_agent(algorithm, PointEnv(), tensorboard_log=str(tmp_path))
    model.learn(10)
    model.learn(10, reset_num_timesteps=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"]
    model.learn(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{algorithm.__name__}_1", f"{algorithm.__name__}_2"]


def test_stats_window_size(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(2), stats_window_size=3).learn(20)
    assert len(model.ep_info_buffer) == 3


def test_second_learn_continues_or_starts_anew(algorithm: Any) -> None:
    env = Recorder(PointEnv(10))
    model = make_agent(algorithm, env).learn(13)
    model.learn(4, reset_num_timesteps=False)
    assert model.num_timesteps == 17
    assert env.log[-1][3][2] == pytest.approx(0.7)  # the same episode went on
    model.learn(4)
    assert model.num_timesteps == 4
    assert env.log[-1][3][2] == pytest.approx(0.4)  # a new one


def test_vec_normalize_stores_raw_data_and_predicts_on_normalised(algorithm: Any) -> None:
    recorder = Recorder(PointEnv(5))
    env = VecNormalize(vec(lambda: recorder))
    model = make_agent(algorithm, env).learn(30)
    assert model.get_vec_normalize_env() is env
    np.testing.assert_allclose(model.replay_buffer.observations[:30, 0], [row[0] for row in recorder.log], atol=1e-5)
    np.testing.assert_allclose(model.replay_buffer.rewards[:30, 0], [row[2] for row in recorder.log], atol=1e-5)
    other = VecNormalize(vec(PointEnv), training=False, norm_reward=False)
    model.set_env(other)
    assert model.get_vec_normalize_env() is other
    model.learn(10)
    assert np.isfinite(evaluate_policy(model, other, 2, warn=False)[0])


def test_environments_in_other_processes(algorithm: Any) -> None:

    class Unsendable(PointEnv):
        """What gym.make gives with a function among its arguments: a specification that cannot be pickled."""

        spec = EnvSpec("Point-v0", kwargs=dict(reward=lambda x: x))

    limited = [lambda: gym.wrappers.TimeLimit(Unsendable(10**9), 200)] * 2
    env = SubprocVecEnv(limited, start_method="fork")  # type: ignore[arg-type]
    try:
        model = make_agent(algorithm, env, gamma="auto").learn(20)
        assert model.gamma == 0.975 and model._n_updates == 6
        assert evaluate_policy(model, env, 2, warn=False)[0] < 0
    finally:
        env.close()


@pytest.mark.parametrize("name", ["Pendulum-v1", "Hopper-v5"])
def test_script_for_sac(algorithm: Any, tmp_path: Any, name: str) -> None:
    """The usual steps, with environments of Gymnasium that never terminate and that do."""
    if name == "Hopper-v5":
        pytest.importorskip("mujoco")
    env = gym.make(name)
    model = make_agent(algorithm, env, learning_starts=100, verbose=0)
    model.learn(total_timesteps=120, log_interval=4)
    model.save(tmp_path / "agent")
    del model
    model = algorithm.load(tmp_path / "agent")
    assert model.policy.episodic is (name == "Hopper-v5")
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()


def test_set_env(algorithm: Any) -> None:
    model = make_agent(algorithm, vec(PointEnv)).learn(13)
    model.set_env(model.get_env(), force_reset=False)
    assert model._last_obs is not None
    model.learn(4, reset_num_timesteps=False)
    model.set_env(PointEnv())
    assert model._last_obs is None
    model.learn(4, reset_num_timesteps=False)
    assert model.num_timesteps == 21
    with pytest.raises(AssertionError):
        model.set_env(vec(PointEnv, PointEnv))
    with pytest.raises(ValueError, match=r"(?i)observation spaces"):
        model.set_env(SpaceEnv(BOX, model.action_space))
    with pytest.raises(ValueError, match=r"(?i)action spaces"):
        model.set_env(SpaceEnv(model.observation_space, BOX))


def test_set_env_drops_the_plan_of_the_old_one(algorithm: Any, monkeypatch: Any) -> None:
    model = make_agent(algorithm, vec(PointEnv), learning_starts=0).learn(4)
    model.set_env(vec(PointEnv))
    plans = watch_plans(model, monkeypatch)
    model.learn(3, reset_num_timesteps=False)
    assert [warm_start.any() for warm_start, _ in plans] == [False, True, True]


def test_evaluation_with_hidden_start_flags(algorithm: Any) -> None:
    """``evaluate_policy`` keeps the flag of an environment that has done its share at True: its row is cold."""
    model = make_agent(algorithm, PointEnv())
    rewards, lengths = evaluate_policy(
        model, vec(lambda: PointEnv(3), lambda: PointEnv(9)), 4, warn=False, return_episode_rewards=True
    )
    assert len(rewards) == 4 and set(lengths) == {3, 9}


def test_policy_can_be_copied(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv()).learn(12)
    observation = observations_of(model.get_env(), 3)
    twin = copy.deepcopy(model.policy)
    expected, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(twin.predict(observation, deterministic=True)[0], expected)
    for parameter in twin.parameters():
        parameter.data.zero_()
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], expected)
    assert not np.allclose(twin.predict(observation, deterministic=True)[0], expected)  # it plans with its own model


def test_state_dict_holds_learned_floats_only(algorithm: Any) -> None:
    """SB3's tests replace every entry by uniform draws and expect finite actions."""
    model = make_agent(algorithm, PointEnv()).learn(12)
    state = model.policy.state_dict()
    assert all(tensor.is_floating_point() and tensor.numel() > 0 for tensor in state.values())
    random = {name: th.rand_like(tensor) for name, tensor in state.items()}
    model.policy.load_state_dict(random)
    assert_same_state(dict(model.policy.state_dict()), random)
    for deterministic in (True, False):
        action, (mean, *_) = model.predict(observations_of(model.get_env(), 5), deterministic=deterministic)
        assert np.isfinite(action).all() and np.isfinite(mean).all()


def test_hyperparameters_can_be_read(algorithm: Any) -> None:
    """HParamCallback of SB3's guide and the zoo read these."""
    model = make_agent(algorithm, "Pendulum-v1", learning_rate=1e-3)
    assert isinstance(model.gamma, float) and isinstance(model.learning_rate, float) and isinstance(model.tau, float)
    assert isinstance(model.learning_starts, int) and isinstance(model.batch_size, int)
    assert model.device.type == model.policy.device.type == "cpu"
