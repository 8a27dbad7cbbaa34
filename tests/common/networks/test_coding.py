"""How rewards and values are coded, and networks without SimNorm or LayerNorm (TD-MPC2's ablations)."""

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_mpc import TDMPC2
from sb3_mpc.common.networks.layers import EnsembleMLP, SimNorm
from sb3_mpc.common.networks.two_hot import Regression, TwoHot, make_coding
from tests.support.agents import PointEnv, make_agent, observations_of, sample_windows, two_envs

NUMBERS = th.tensor([[-7.0], [0.0], [0.5], [300.0]])


@pytest.mark.parametrize("num_bins", [0, 1, 11, 101])
def test_what_is_learned_perfectly_is_decoded(num_bins: int) -> None:
    coding = make_coding(num_bins)
    assert isinstance(coding, TwoHot if num_bins > 1 else Regression)
    output = coding.encode(NUMBERS)
    if num_bins > 1:
        output = output.clamp(min=1e-30).log()
    assert output.shape == (4, coding.num_outputs)
    th.testing.assert_close(coding.decode(output), NUMBERS, rtol=1e-3, atol=1e-4)


def test_regression_is_the_squared_error() -> None:
    """Of the number itself or of its symlog, for all networks of an ensemble against one target."""
    output, target = th.tensor([[[2.0]], [[-1.0]]]), th.tensor([[3.0]])
    assert make_coding(0).loss(output, target).flatten().tolist() == [1.0, 16.0]
    log = th.tensor(4.0).log()
    th.testing.assert_close(make_coding(1).loss(output, target).flatten(), th.stack([(2 - log) ** 2, (1 + log) ** 2]))
    assert make_coding(1).decode(th.tensor([[-1.0]])).item() == pytest.approx(1 - th.e)


@pytest.mark.parametrize(("num_bins", "coded"), [(0, lambda x: x), (1, lambda x: x.sign() * x.abs().log1p())])
def test_losses_of_an_agent_that_regresses(num_bins: int, coded: Any) -> None:
    """Its outputs start at zero: the losses are the mean squares of what is to be learned."""
    model = make_agent(TDMPC2, two_envs(), policy_kwargs=dict(num_bins=num_bins), learning_starts=20).learn(20)
    batch, noise = sample_windows(model), model.draw_noise(8)
    weights = th.tensor([1.0, model.rho]).view(2, 1, 1) * batch.mask
    assert (
        model.value_target(model.policy.world_model.encode(batch.observations)[1:], batch, noise) == batch.rewards
    ).all()
    expected = (weights * coded(batch.rewards).square()).mean()
    logs = model.update(batch._replace(buffer_index=None), noise)
    th.testing.assert_close(logs["reward_loss"], expected)
    th.testing.assert_close(logs["value_loss"], expected)


def test_every_method_takes_them(algorithm: Any) -> None:
    without = dict(num_bins=1, simnorm_dim=None, layer_norm=False)
    model = make_agent(algorithm, two_envs(terminate=True), policy_kwargs=without).learn(20)
    assert model._n_updates > 0 and np.isfinite(model.predict(observations_of(model, 3))[0]).all()


def test_latent_states_without_simnorm() -> None:
    """LayerNorm stays: each latent state is normed, and not on simplices."""
    with_it, without = (make_agent(TDMPC2, PointEnv(), policy_kwargs=dict(simnorm_dim=dim)) for dim in (8, None))
    for model in (with_it, without):
        world = model.policy.world_model
        z = world.encode(th.randn(5, 3))
        for latent in (z, world.next(z, th.zeros(5, 2))):
            on_simplices = th.allclose(latent.view(5, 2, 8).sum(-1), th.ones(5, 2)) and bool((latent >= 0).all())
            assert on_simplices == (model is with_it)
            if model is without:
                th.testing.assert_close(latent.mean(-1), th.zeros(5), atol=1e-5, rtol=0)
                th.testing.assert_close(latent.var(-1, unbiased=False), th.ones(5), atol=0.05, rtol=0)
    assert not any(isinstance(module, SimNorm) for module in without.policy.modules())
    odd = make_agent(TDMPC2, PointEnv(), policy_kwargs=dict(simnorm_dim=None, latent_dim=13))  # any size
    assert odd.policy.world_model.encode(th.zeros(1, 3)).shape == (1, 13)


def test_networks_without_layer_norm() -> None:
    model = make_agent(TDMPC2, PointEnv(), policy_kwargs=dict(layer_norm=False), episodic=True)
    world = model.policy.world_model
    assert not any(isinstance(module, nn.LayerNorm) for module in model.policy.modules())
    assert not [name for name, _ in model.policy.named_parameters() if "ln" in name]
    z, action = th.rand(4, 16), th.rand(4, 2)
    first, last = world.dynamics
    hidden = nn.functional.mish(nn.functional.linear(th.cat([z, action], -1), first.weight, first.bias))
    expected = nn.functional.linear(hidden, last.weight, last.bias).view(4, 2, 8).softmax(-1).flatten(1)
    th.testing.assert_close(world.next(z, action), expected)
    # In plans, products with the same first state are computed once
    th.testing.assert_close(world.next(z[:1].expand(4, -1), action)[0], expected[0])


def test_ensemble_without_layer_norm() -> None:
    ensemble, x = EnsembleMLP(3, 5, [6], 1, layer_norm=False), th.randn(4, 5)
    first, last = ensemble.layers
    nn.init.normal_(last.weight)
    found = ensemble(x, members=th.tensor([2]))[0]
    expected = nn.functional.mish(x @ first.weight[2].T + first.bias[2]) @ last.weight[2].T + last.bias[2]
    th.testing.assert_close(found, expected)


def test_unknown_codings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_bins=-1 is out of range: use a number from 0"):
        make_agent(TDMPC2, PointEnv(), policy_kwargs=dict(num_bins=-1))
