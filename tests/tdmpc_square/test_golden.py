"""TD-M(PC)² against tensors that the official implementation has computed; see ``tests/support/golden.py``."""

from typing import Any

import pytest
import torch as th

from sb3_mpc import TDMPCSquare
from sb3_mpc.common.buffers.sequence_buffer import SequenceBatch
from sb3_mpc.common.execution.gradients import gradient_step
from sb3_mpc.common.networks.gaussian import gaussian_log_prob, squash_correction
from sb3_mpc.common.networks.losses import UpdateNoise
from sb3_mpc.common.planning.plan import PlanNoise
from sb3_mpc.tdmpc_square.tdmpc_square import PriorDraw, official_log_prob
from sb3_mpc.zoo.import_official import official_to_ours
from tests.support.golden import (
    GOLDEN,
    Golden,
    close,
    compare,
    compare_plan,
    draws,
    files_of,
    model_terms,
    policy_gradients,
    read_manifest,
    variants_with,
)

METHOD = "tdmpc_square"


def load(variant: str) -> Golden:
    config = read_manifest(METHOD, variant)["config"]
    names = ("prior_coef", "scale_threshold")
    return Golden(TDMPCSquare, METHOD, variant, **{name: config[name] for name in names})


def windows(golden: Golden) -> SequenceBatch:
    b = golden.read("batch")
    return golden.windows()._replace(plans=th.stack([b["mu"], b["std"]]))


def policy_noise(actions: th.Tensor, members: th.Tensor) -> UpdateNoise:
    return UpdateNoise(None, actions, members, actions, members)


def test_golden_tdmpc_square_sets_are_there() -> None:
    assert variants_with(METHOD, "weights_init"), f"no golden set found under {GOLDEN / METHOD}"


@pytest.mark.parametrize("variant", variants_with(METHOD, "forward"))
def test_golden_tdmpc_square_forward(variant: str) -> None:
    golden = load(variant)
    world, batch, record = golden.world, windows(golden), golden.read("forward")
    z = world.encode(batch.observations)
    mean, log_std = world.prior(z)
    action = world.act(z, record["pi_noise"])
    log_prob, dim = gaussian_log_prob(record["pi_noise"], log_std), world.action_dim
    official = official_log_prob(gaussian_log_prob(record["glp_eps"], record["glp_log_std"]), dim, dim)
    ours = dict(
        z=z,
        q_logits=world.value(z[:-1], batch.actions),
        pi_mean=th.tanh(mean),
        pi_action=action,
        pi_log_std=log_std,
        pi_log_prob=official_log_prob(log_prob, dim, dim) - squash_correction(action),
        gaussian_logprob=official,
    )
    compare(ours, {name: value for name, value in record.items() if not name.startswith("glp_")}, "forward")


@pytest.mark.parametrize(("variant", "file"), files_of(METHOD, "policy_residual_*"))
def test_golden_tdmpc_square_policy_loss(variant: str, file: str) -> None:
    golden = load(variant)
    model, batch, record = golden.model, windows(golden), golden.read(file)
    noise, zs, scale = policy_noise(*draws(record)), record["zs"], golden.policy.running_scale
    scale.value.fill_(float(record["scale_before"]))
    loss, logs = model.policy_loss(th.cat([zs, zs[:1]]), batch, noise)  # the last state is not used
    action, log_prob, q = model.prior_values(zs, noise)
    mean, std = model.planned(batch)
    dim = golden.world.action_dim
    prior = official_log_prob(gaussian_log_prob((action - mean) / std, std.log()), dim, dim)
    ours = dict(
        scale_after=scale.value,
        pi_loss=loss,
        q_loss=logs["pi_q_loss"],
        prior_loss=logs["pi_prior_loss"],
        pis=action,
        log_pis=official_log_prob(log_prob, dim, dim) - squash_correction(action),
        qs_scaled=scale(q),
        log_pis_prior_raw=prior,
    )
    assert logs["constraint_active"] == (scale.value > model.scale_threshold)
    gradients = policy_gradients(golden, loss)
    norm = gradient_step(golden.policy.pi_optimizer, loss, model.max_grad_norm)
    compare(ours | dict(grad_norm=norm), {name: v for name, v in record.items() if name in (*ours, "grad_norm")}, file)
    for kind, found in (("grad_", gradients), ("after_", golden.world.state_dict())):
        parts = {name.removeprefix(kind): value for name, value in record.items() if name.startswith(f"{kind}_pi")}
        official = official_to_ours(parts)
        assert len(official) == len(gradients)
        compare(found, official, f"{file} {kind}")


def official_awac(golden: Golden, members: th.Tensor) -> None:
    """What we do otherwise on purpose: other members value the replayed actions, the sign, and no tanh in densities."""
    model, world, scale = golden.model, golden.world, golden.policy.running_scale

    def advantage(prior: PriorDraw, batch: SequenceBatch, noise: UpdateNoise) -> th.Tensor:
        q = world.two_hot.decode(world.value(prior.zs, batch.actions, members)).mean(0)
        return scale(prior.q - q).detach()

    def log_prob(zs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        mean, raw = world.prior_net(zs).chunk(2, dim=-1)
        dim = world.action_dim
        return official_log_prob(gaussian_log_prob((actions - mean) / (raw.exp() + 1e-8), raw), dim, dim)

    model.advantage, model.log_prob = advantage, log_prob


@pytest.mark.parametrize("variant", variants_with(METHOD, "policy_awac"))
@pytest.mark.parametrize("mode", [mode for mode in TDMPCSquare.choices["actor_mode"] if mode != "residual"])
def test_golden_tdmpc_square_baselines(variant: str, mode: str) -> None:
    golden = load(variant)
    model, record, scale = golden.model, golden.read(f"policy_{mode}"), golden.policy.running_scale
    model.actor_mode = mode
    actions, members, *others = draws(record)
    if mode == "awac":
        official_awac(golden, others[0])
    scale.value.fill_(float(record["scale_before"]))
    zs = th.cat([record["zs"], record["zs"][:1]])  # the last state is not used
    loss, logs = model.policy_loss(zs, windows(golden), policy_noise(actions, members))
    ours = dict(pi_loss=loss, scale_after=scale.value)
    ours |= dict(q_loss=logs["pi_q_loss"]) if "pi_q_loss" in logs else {}
    ours |= dict(prior_loss=logs["pi_prior_loss"]) if mode.startswith("bc") else {}
    gradients = policy_gradients(golden, loss)
    ours["grad_norm"] = gradient_step(golden.policy.pi_optimizer, loss, model.max_grad_norm)
    compare(ours, {name: value for name, value in record.items() if name in ours}, mode)
    for kind, found in (("grad_", gradients), ("after_", golden.world.state_dict())):
        parts = {name.removeprefix(kind): value for name, value in record.items() if name.startswith(f"{kind}_pi")}
        compare(found, official_to_ours(parts), f"{mode} {kind}")


@pytest.mark.parametrize(("variant", "file"), files_of(METHOD, "update_*"))
def test_golden_tdmpc_square_updates(variant: str, file: str) -> None:
    golden = load(variant)
    model, batch, record = golden.model, windows(golden), golden.read(file)
    golden.policy.running_scale.value.fill_(float(record["scale_before"]))
    noise = UpdateNoise(None, *draws(record))
    ours = model_terms(golden, batch, noise)
    logs = model.update(batch, noise)
    ours |= {f"info_{name}": value for name, value in logs.items()}
    total = sum(getattr(model, f"{part}_coef") * logs[f"{part}_loss"] for part in ("consistency", "reward", "value"))
    ours |= dict(info_total_loss=total, info_pi_loss_q=logs["pi_q_loss"], info_pi_loss_prior=logs["pi_prior_loss"])
    ours |= dict(scale_after=golden.policy.running_scale.value, pi_grad_norm=logs["pi_grad_norm"])
    # The official norm of the model's gradient contains what the policy step before has left behind, clipped by itself
    ours |= dict(info_grad_norm=record["info_grad_norm"], model_grad_norm=record["model_grad_norm"])
    leftover = (record["model_grad_norm"] ** 2 - logs["grad_norm"] ** 2).sqrt()
    assert 0 <= leftover <= 1.0001 * model.max_grad_norm
    if file == "update_S5":  # recorded after this one
        close(leftover, golden.read("update_S1")["pi_grad_norm"].clamp(max=model.max_grad_norm))
    compare(ours, {name: value for name, value in record.items() if name != "scale_before"}, file)
    weights = official_to_ours(golden.read(f"weights_after_{file}"))
    assert len(weights) == len(golden.world.state_dict())
    compare(golden.world.state_dict(), weights, file)


@pytest.mark.parametrize(("variant", "file"), files_of(METHOD, "plan*"))
def test_golden_tdmpc_square_plan(variant: str, file: str) -> None:
    golden = load(variant)
    record, planner = golden.read(file), golden.policy.planner
    h, j, rest = planner.horizon, planner.iterations, draws(record)
    proposals, rest = th.stack(rest[:h]).unsqueeze(1), rest[h:]
    samples, terminal, members = (rest[k : 3 * j : 3] for k in range(3))
    selection = th.ones(1, planner.num_elites)
    selection[0, rest[3 * j]] = 1e-30  # the official code draws the index itself
    noise = PlanNoise(
        proposals=proposals,
        samples=th.stack(samples).unsqueeze(2),
        terminal=th.stack(terminal).unsqueeze(1),
        members=th.stack(members),
        selection=selection,
        exploration=rest[3 * j + 1].reshape(1, -1) if len(rest) > 3 * j + 1 else None,
    )
    assert (noise.exploration is None) == golden.manifest[file]["args"]["eval_mode"]
    stored: dict[str, Any] = dict(
        mu=lambda plan: golden.model.plan_to_store(plan)[0], std=lambda plan: golden.model.plan_to_store(plan)[1]
    )
    close(golden.world.encode(record["obs"]), record.pop("z"), "z")
    compare_plan(golden, record, file, noise, **stored)
