"""Observations of any space that SB3 knows are encoded, and actions fill the bounds of any Box."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import nn

from tests.support.agents import PointEnv, Recorder, SpaceEnv, assert_same_state, make_agent, observations_of

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 40, 1), np.uint8)
FLOAT64 = spaces.Box(-1.0, 1.0, (2,), np.float64)


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
def test_every_observation_space_is_learned_from(algorithm: Any, space: spaces.Space) -> None:
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
def test_actions_fill_the_bounds_of_their_space(algorithm: Any, space: spaces.Box, deterministic: bool) -> None:
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
