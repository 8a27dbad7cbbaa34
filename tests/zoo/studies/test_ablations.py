"""Every ablation trains and acts, compiled, too, where its computation differs; one run from end to end."""

import csv
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_mpc import TDMPC2
from sb3_mpc.zoo.studies import ablations
from sb3_mpc.zoo.studies.ablations import ABLATIONS, Guided, GuidedValues, make
from tests.support.agents import SMALL, SMALL_POLICY, observations_of, sample_windows, two_envs

SETTINGS: dict[str, Any] = {**SMALL, "learning_starts": 8, "policy_kwargs": SMALL_POLICY, "device": "cpu", "seed": 0}
# Names and further settings: what changes the computation, and not only sizes, in as few agents as possible
COMPILED: dict[str, dict[str, Any]] = {
    "no-norms": dict(policy_kwargs={**SMALL_POLICY, "num_bins": 1}),
    "bmpc-variant-2": dict(reanalyze_interval=2),
    "bmpc-variant-3": dict(reanalyze_interval=2, imitation_loss="log_prob", reanalyze_horizon=3),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_trains_and_plans(name: str) -> None:
    model = make(name, two_envs(), SETTINGS).learn(12)
    before = th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])
    logs = model.update(sample_windows(model, 16)._replace(buffer_index=None), model.draw_noise(16))
    assert all(value.isfinite() for value in logs.values())
    after = th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])
    assert not th.equal(before, after)
    assert np.isfinite(model.predict(observations_of(model, 3))[0]).all()


def test_no_ablation_is_another_one() -> None:
    settings = [(a.algorithm, sorted(a.settings.items(), key=str)) for a in ABLATIONS.values()]
    assert all(settings.count(one) == 1 for one in settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_traced_ablations_equal_eager_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    th._dynamo.reset()
    th._dynamo.utils.counters.clear()
    actions, parameters = [], []
    for compile in (False, True):
        model = make(name, two_envs(), SETTINGS, compile=compile, **COMPILED[name])
        model.learn(16)
        actions.append(model.predict(observations_of(model, 2), deterministic=True)[0])
        parameters.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert model._compiled and not th._dynamo.utils.counters["graph_break"]
    th.testing.assert_close(parameters[1], parameters[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(actions[1], actions[0], atol=1e-2)


def test_squashed_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy loss differs from TD-MPC2's by the determinant of tanh, and by the penalty, alone."""
    model = make("squashed-entropy-penalised", two_envs(), SETTINGS).learn(12)
    batch, noise = sample_windows(model), model.draw_noise(8)
    zs = th.rand(len(batch.observations), 8, 16)
    model.entropy_coef, start = 0.5, model.policy.running_scale.value.clone()
    found, _ = model.policy_loss(zs, batch, noise)
    model.policy.running_scale.value.copy_(start)
    monkeypatch.setattr(type(model), "policy_bonus", TDMPC2.policy_bonus)
    plain, _ = model.policy_loss(zs, batch, noise)
    mean, log_std = model.policy.world_model.prior(zs)
    action = th.tanh(mean + noise.policy_actions * log_std.exp())
    terms = 0.5 * 2 * (1 - action**2 + 1e-6).log() - 1e-3 * mean**2
    weights = 0.5 ** th.arange(len(zs)).view(-1, 1) * th.cat([th.ones_like(batch.mask[:1]), batch.mask]).squeeze(-1)
    th.testing.assert_close(found, plain - (weights * terms.sum(-1)).mean())


@pytest.mark.parametrize("variant", [Guided, GuidedValues])
def test_guide_imitates_plans_and_changes_no_value(variant: Any) -> None:
    """Values, and the policy that they are of, are those of TD-MPC2; plans start from the guide."""
    name = next(name for name, ablation in ABLATIONS.items() if ablation.algorithm is variant)
    model = make(name, two_envs(), SETTINGS, reanalyze_interval=2).learn(24)
    world, planner = model.policy.world_model, model.policy.planner
    batch, noise = sample_windows(model), model.draw_noise(8)
    zs, z = th.rand(3, 8, 16, requires_grad=True), th.rand(4, 5, 16)
    loss = model.extra_losses(zs, batch, noise)["imitation"]
    gradients = {
        name: th.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)[0]
        for name, parameter in world.named_parameters()
        if parameter.requires_grad
    }
    names = [name for name, gradient in gradients.items() if gradient is not None]
    assert names and all(name.startswith("guide_net.") for name in names)
    assert th.autograd.grad(loss, zs, allow_unused=True)[0] is None
    with th.no_grad():
        guided = planner.act(z, th.zeros(4, 5, 2))
        th.testing.assert_close(guided, world.guide(z)[0])
        assert not th.allclose(guided, world.act(z, None))
        end, members = th.zeros(4, 5, 2), th.tensor([0, 1])
        action = guided if variant is GuidedValues else world.act(z, None)
        expected = world.two_hot.decode(world.value(z, action, members)).mean(0)
        th.testing.assert_close(planner.terminal_value(z, end, members), expected)
        wide = model._reanalyzer.act(z, th.ones(4, 5, 2)) - world.guide(z)[0]
        th.testing.assert_close(
            wide, (world.guide(z)[0] + world.guide(z, (-2.0, 1.0))[1].exp()).clamp(-1, 1) - world.guide(z)[0]
        )


@pytest.mark.slow
def test_run_from_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dm_control")
    task = "dmc/cartpole-swingup-v0"
    monkeypatch.setattr(gym.spec(task), "max_episode_steps", 10)
    monkeypatch.setattr(
        ablations, "load_preset", lambda *args: {**SETTINGS, "n_envs": 2, "n_timesteps": 30, "policy": "MlpPolicy"}
    )
    arguments = f"ablations train no-simnorm {task} --every 15 --data {tmp_path / 'x.csv'}"
    monkeypatch.setattr(sys, "argv", arguments.split())
    ablations.main()
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["task"], row["decisions"]) for row in rows] == [
        ("no-simnorm", task, "16"),
        ("no-simnorm", task, "30"),
    ]
    monkeypatch.setattr(sys, "argv", ["ablations", "list"])
    ablations.main()
    assert "bmpc-variant-3" in capsys.readouterr().out
