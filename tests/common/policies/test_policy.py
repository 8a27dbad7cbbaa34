"""A policy is a module as SB3's are: its actor and critics are parts that can be used, copied, frozen and exported."""

import copy
import importlib
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import polyak_update
from torch import nn

import sb3_mpc
from sb3_mpc import BMPC, TDMPC2
from sb3_mpc.common.networks.world_model import WorldModel
from tests.support.agents import PointEnv, assert_one_clear_sentence, assert_same_state, make_agent, observations_of


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
    # torch.onnx.export with SB3's opset 17 turns these into nodes that ONNX Runtime refuses
    assert not [node for node in program.graph.nodes if re.search("split|chunk", str(node.target))]
    assert model.actor is not None  # as for SAC


def test_actor_acts_on_windows(algorithm: Any) -> None:
    """Each observation of a window of the replay buffer has its own draw, also where the window is as long as wide."""
    model = make_agent(algorithm, PointEnv())
    model.policy.world_model.prior_net[-1].bias.data[2:].fill_(-10)  # narrow, so that no action is at its bound
    for actor in (model.actor, make_agent(algorithm, PointEnv()).learn(12).actor):
        for shape in ((8,), (4, 8), (4, 4), (2, 3, 4)):
            observations = th.zeros(*shape, 3)
            with th.no_grad():
                actions, mode = actor(observations), actor(observations, deterministic=True)
            assert actions.shape == mode.shape == (*shape, 2)
            assert len(actions.flatten(0, -2).unique(dim=0)) == observations[..., 0].numel()
            assert th.allclose(mode, mode.flatten(0, -2)[0].expand_as(mode), atol=1e-6)


@pytest.mark.parametrize("through", ["policy", "actor"])
def test_actions_can_be_imitated(algorithm: Any, through: str) -> None:
    """SB3's script for pre-training from demonstrations: ``policy(observations)`` in training mode, own optimiser."""
    model = make_agent(algorithm, PointEnv(), seed=0)
    policy = model.policy if through == "policy" else model.actor
    observations = th.as_tensor(observations_of(model.get_env(), 64))
    demonstrated = 0.8 * th.sin(3 * observations[:, :2])
    optimizer = th.optim.Adam(policy.parameters(), lr=1e-2)
    policy.train()
    for _ in range(150):
        loss = (policy(observations, deterministic=True) - demonstrated).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert th.isfinite(policy(observations)).all()
    policy.eval()
    with th.no_grad():
        acted = model.actor(observations, deterministic=True)
    assert (acted - demonstrated).square().mean() < 0.05


def test_a_call_of_the_policy_plans_unless_gradients_are_asked_for(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv()).learn(12)
    observation = observations_of(model.get_env(), 3)
    planned = model.policy.scale_action(model.predict(observation, deterministic=True)[0])
    tensor = th.as_tensor(observation)
    for policy in (model.policy, copy.deepcopy(model.policy)):
        assert np.allclose(policy(tensor, deterministic=True).numpy(), planned, atol=1e-6)
        policy.train()
        with th.no_grad():
            assert np.allclose(policy(tensor, deterministic=True).numpy(), planned, atol=1e-6)
        policy.train()
        assert policy(tensor, deterministic=True).requires_grad
    assert not make_agent(algorithm, PointEnv()).policy(tensor).requires_grad  # new agents plan, too


def test_attributes_of_sac_exist_or_say_what_to_use(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv())
    assert model.policy.net_arch == [16]
    sizes = dict(pi=[8], qf=[16])
    assert make_agent(algorithm, PointEnv(), policy_kwargs=dict(net_arch=sizes)).policy.net_arch == sizes
    for owner, name, instead in (
        (model.actor, "optimizer", "policy.pi_optimizer"),
        (model.critic, "optimizer", "policy.model_optimizer"),
        (model.critic_target, "optimizer", "policy.model_optimizer"),
        (model, "log_ent_coef", "entropy_coef"),
        (model, "ent_coef_optimizer", "entropy_coef"),
    ):
        assert not hasattr(owner, name)
        with pytest.raises(AttributeError) as error:
            getattr(owner, name)
        assert_one_clear_sentence(error.value, name, instead)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = model.actor.nothing


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
        assert copied.actor.world_model is copied.active()[0] is not policy.active()[0]
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


def test_frozen_parameters_stay_as_they_are(algorithm: Any) -> None:
    model = make_agent(algorithm, PointEnv(), policy_kwargs=dict(features_extractor_class=HalfFrozen))
    extractor = model.policy.world_model.encoder.features_extractor
    back, head = (copy.deepcopy(part.state_dict()) for part in (extractor.back, extractor.head))
    model.learn(20)
    assert_same_state(extractor.back.state_dict(), back)
    assert not th.equal(extractor.head.weight, head["weight"])
    for parameter in model.actor.prior_net.parameters():
        parameter.requires_grad_(False)
    model.learn(10)


def test_policies_can_be_imported_from_each_method() -> None:
    for name in ("tdmpc2", "tdmpc_square", "bmpc", "mbdpo", "fac_tdmpc"):
        module = importlib.import_module(f"sb3_mpc.{name}")
        for alias in ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"):
            assert getattr(module, alias) is sb3_mpc.ALGORITHMS[name].policy_aliases[alias]


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


def test_further_networks_of_a_derived_model_are_trained() -> None:
    class WithHead(WorldModel):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.further = th.nn.Linear(self.latent_dim, 1)

    class WithLoss(TDMPC2):
        policy_defaults = dict(world_model_class=WithHead)
        further_coef = 1.0

        def extra_losses(self, zs: th.Tensor, batch: Any, noise: Any) -> dict[str, th.Tensor]:
            return dict(further=(self.policy.world_model.further(zs[1:]) - 1).square().mean())  # type: ignore[operator]

    model = make_agent(WithLoss, PointEnv())
    head = model.policy.world_model.further
    before = head.weight.detach().clone()
    model.learn(12)
    assert not th.equal(head.weight, before)
