"""
MBDPO against tensors that the official implementation has computed; see ``tests/support/golden.py``.

The official code pairs the states of its energy with the actions of other states, and lets the loss of its score
network reach the encoder. Both are re-made here, in :class:`OfficialMBDPO`, to compare updates.
"""

from typing import Any

import pytest
import torch as th

from sb3_mpc import MBDPO
from sb3_mpc.common.networks.gaussian import gaussian_log_prob
from sb3_mpc.common.networks.losses import UpdateNoise
from sb3_mpc.common.planning.plan import PlanNoise
from sb3_mpc.zoo.import_official import PLANNER_PARTS, official_to_ours
from tests.support.golden import (
    GOLDEN,
    Arrays,
    Golden,
    compare,
    draws,
    files_of,
    model_terms,
    read_manifest,
    variants_with,
)

METHOD = "mbdpo"


class OfficialMBDPO(MBDPO):
    """MBDPO with two faults of the official code."""

    def contrastive_loss(self, z: th.Tensor, batch: Any, noise: Any) -> th.Tensor:
        mixed_up = batch.actions.transpose(0, 1).reshape(batch.actions.shape)
        return super().contrastive_loss(z, batch._replace(actions=mixed_up), noise)

    def extra_losses(self, zs: th.Tensor, batch: Any, noise: UpdateNoise) -> dict[str, th.Tensor]:
        losses = super().extra_losses(zs, batch, noise)
        if "score" in losses:
            losses["score"] = self.score_loss(zs[0, :1], noise.extra)
        return losses


def load(variant: str, **settings: Any) -> Golden:
    config = read_manifest(METHOD, variant)["config"]
    names = ("num_samples", "num_elites", "num_pi_trajs", "temperature")
    settings = {name: config[f"diffusion_{name}"] for name in names} | settings
    golden = Golden(
        OfficialMBDPO,
        METHOD,
        variant,
        iterations=config["diffusion_steps"] - 1,
        beta_start=config["diffusion_beta0"],
        beta_end=config["diffusion_betaT"],
        exploration_std=config["diffusion_action_noise"],
        time_embed_dim=config["diffusion_time_embed_dim"],
        contrastive_eta=config["contrastive_eta"],
        score_coef=config["score_loss_coef"],
        score_states=1,
        **{"use_score_network": True, **settings},
    )
    forward = golden.read("forward")  # with the statistics that all records but those of updates begin with
    golden.policy.planner.energy_mean.copy_(forward["contrastive_mean"])
    golden.policy.planner.energy_std.copy_(forward["contrastive_std"])
    weights = official_to_ours(golden.read("weights_init"), PLANNER_PARTS)
    golden.policy.planner.load_state_dict(weights, strict=False)
    assert weights.keys() >= dict(golden.policy.planner.named_parameters()).keys()
    return golden


def contrastive_noise(golden: Golden, rest: list[th.Tensor]) -> dict[str, th.Tensor]:
    shape = golden.read("batch")["action"].shape
    return {name: value.reshape(shape) for name, value in zip(("prior", "noisy", "uniform"), rest, strict=True)}


def score_noise(tau: th.Tensor, x: th.Tensor, samples: th.Tensor, terminal: th.Tensor, members: th.Tensor) -> Arrays:
    """One state; official samples are ``[N, H, A]``."""
    samples = samples.transpose(0, 1).unsqueeze(1)
    return dict(tau=tau, x=x.unsqueeze(1), samples=samples, terminal=terminal.unsqueeze(0), members=members[:2])


def compare_gradients(golden: Golden, loss: th.Tensor, record: Arrays, where: str) -> None:
    parameters = dict(golden.policy.planner.named_parameters())
    official = official_to_ours({k.removeprefix("grad_"): v for k, v in record.items() if "grad_" in k}, PLANNER_PARTS)
    gradients = th.autograd.grad(loss, [parameters[name] for name in official])
    assert official
    compare(dict(zip(official, gradients, strict=True)), official, f"{where} gradient of")


def test_golden_mbdpo_sets_are_there() -> None:
    assert variants_with(METHOD, "weights_init"), f"no golden set found under {GOLDEN / METHOD}"


@pytest.mark.parametrize("variant", variants_with(METHOD, "forward"))
def test_golden_mbdpo_forward(variant: str) -> None:
    golden = load(variant)
    world, planner, batch, record = golden.world, golden.policy.planner, golden.windows(), golden.read("forward")
    z = world.encode(batch.observations)
    z0, (mean, log_std) = z[:-1], world.prior(z)
    energy = planner.energy(z0, batch.actions)
    noise = UpdateNoise(None, record["td_noise"], th.arange(2), record["pi_noise"], th.arange(2))
    score = planner.predict_score(record["score_z"], record["score_x_tau"].transpose(0, 1), record["score_tau"])
    ours = dict(
        z=z,
        next_z=world.next(z0, batch.actions),
        reward_logits=world.reward(z0, batch.actions),
        q_logits=world.value(z0, batch.actions),
        q_target_logits=world.value(z0, batch.actions, target=True),
        F_energy=energy,
        F_normalised=planner.normalise(energy),
        pi_action=world.act(z, record["pi_noise"]),
        pi_mean=th.tanh(mean),
        pi_log_std=log_std,
        pi_scaled_entropy=-world.action_dim * gaussian_log_prob(record["pi_noise"], log_std),
        betas=1 - planner.alpha,
        alphas=planner.alpha,
        alpha_bar=planner.alpha_bar,
        time_embed=planner.embed_time(record["time_embed_tau"]),
        score_out=score.transpose(0, 1),
        td_target=golden.model.value_target(z[1:], batch, noise),
        value=planner.evaluate(
            record["value_z"],
            record["value_actions"].unsqueeze(1),
            record["value_draw000_randn_like"].unsqueeze(0),
            record["value_draw001_randperm"][:2],
        ),
    )
    inputs = {"contrastive_mean", "contrastive_std", "time_embed_tau", "score_x_tau", "score_tau", "score_z"}
    inputs |= {"value_actions", "value_z", "value_draw000_randn_like", "value_draw001_randperm"}
    compare(ours, {name: value for name, value in record.items() if name not in inputs}, "forward")


@pytest.mark.parametrize("variant", variants_with(METHOD, "contrastive"))
def test_golden_mbdpo_contrastive_loss(variant: str) -> None:
    golden = load(variant)
    planner, record = golden.policy.planner, golden.read("contrastive")
    planner.energy_mean.copy_(record["mean_before"])
    planner.energy_std.copy_(record["std_before"])
    batch = golden.windows()._replace(actions=record["actions"])
    loss = golden.model.contrastive_loss(record["zs"], batch, contrastive_noise(golden, draws(record)))
    ours = dict(contrastive_loss=loss, mean_after=planner.energy_mean, std_after=planner.energy_std)
    compare(ours, {name: value for name, value in record.items() if name in ours}, "contrastive")
    compare_gradients(golden, loss, record, "contrastive")


@pytest.mark.parametrize("variant", variants_with(METHOD, "score_target"))
def test_golden_mbdpo_score_loss(variant: str) -> None:
    golden = load(variant)
    planner, record = golden.policy.planner, golden.read("score_target")
    noise, z = score_noise(*draws(record)), record["z0"]
    with th.no_grad():
        sampled = (noise["samples"], noise["terminal"], noise["members"])
        target, _ = planner.model_score(z, noise["x"], noise["tau"], sampled, elites=noise["samples"].shape[2])
    loss = golden.model.score_loss(z, noise)
    ours = dict(x_tau=noise["x"], tau=noise["tau"], target_score=target, score_loss=loss)
    ours["pred_score"] = planner.predict_score(z, noise["x"], noise["tau"])
    compare(ours, {name: v for name, v in record.items() if "grad_" not in name and name != "z0"}, "score_target")
    compare_gradients(golden, loss, record, "score")


@pytest.mark.parametrize(("variant", "file"), files_of(METHOD, "update_*"))
def test_golden_mbdpo_updates(variant: str, file: str) -> None:
    golden = load(variant, use_score_network=file == "update_score")
    model, planner, batch, record = golden.model, golden.policy.planner, golden.windows(), golden.read(file)
    planner.energy_mean.copy_(record["contrastive_mean_before"])
    planner.energy_std.copy_(record["contrastive_std_before"])
    target, *rest = draws(record)
    extra = contrastive_noise(golden, rest[:3])
    if file == "update_score":
        extra |= score_noise(*rest[3:8])
    noise = UpdateNoise(None, target, th.arange(2), rest[-2], rest[-1][:2], extra=extra)
    logs = model.update(batch, noise)
    zero = th.zeros(())
    ours = dict(info_score_loss=zero, info_termination_loss=zero) | {f"info_{k}": v for k, v in logs.items()}
    parts = ("consistency", "reward", "value", "contrastive", "score")
    ours["info_total_loss"] = sum(getattr(model, f"{part}_coef") * logs.get(f"{part}_loss", zero) for part in parts)
    ours |= dict(model_grad_norm=logs["grad_norm"], pi_grad_norm=logs["pi_grad_norm"])
    ours |= dict(scale_after=golden.policy.running_scale.value)
    ours |= dict(contrastive_mean_after=planner.energy_mean, contrastive_std_after=planner.energy_std)
    compare(ours, {name: value for name, value in record.items() if not name.endswith("_before")}, file)
    after = golden.read(f"weights_after_{file}")
    compare(golden.world.state_dict(), official_to_ours(after), file)
    weights = official_to_ours(after, PLANNER_PARTS)
    if file != "update_score":
        weights = {name: value for name, value in weights.items() if name.startswith("energy_head.")}
    assert weights.keys() == dict(planner.named_parameters()).keys()
    compare(dict(planner.state_dict()), weights, file)


def test_golden_mbdpo_update_terms_are_those_of_tdmpc2() -> None:
    """Targets use the first two networks whatever pair is drawn."""
    for variant in variants_with(METHOD, "forward"):
        golden = load(variant, use_score_network=False)
        noise = golden.model.draw_noise(8)
        assert noise.target_members.tolist() == [0, 1]
        assert th.isfinite(model_terms(golden, golden.windows(), noise)["td_targets"]).all()


@pytest.mark.parametrize(("variant", "file"), files_of(METHOD, "plan_model*"))
def test_golden_mbdpo_plan(variant: str, file: str) -> None:
    golden = load(variant, use_score_network=False)
    record, args, planner = golden.read(file), golden.manifest[file]["args"], golden.policy.planner
    planner.num_elites = args["num_elites"] or planner.num_samples
    rest, h, p, j = draws(record), planner.horizon, planner.num_pi_trajs, planner.iterations
    per = h + 3  # draws of an iteration: samples, proposals, terminal actions, networks
    groups = [rest[per * i : per * (i + 1)] for i in range(j)]
    noise = PlanNoise(
        proposals=th.stack([th.stack(group[1 : 1 + h]) for group in groups]).unsqueeze(2),
        samples=th.stack([group[0].transpose(0, 1)[:, p:] for group in groups]).unsqueeze(2),
        terminal=th.stack([group[h + 1] for group in groups]).unsqueeze(1),
        members=th.stack([group[h + 2][:2] for group in groups]),
        exploration=None if args["eval_mode"] else rest[-1].unsqueeze(0),
    )
    assert len(rest) == per * j + (not args["eval_mode"])
    z, previous = golden.world.encode(record["obs"]), record["prev_mean_before"].unsqueeze(0) * (not args["t0"])
    plan = planner.plan(z, previous, noise)
    ours: dict[str, Any] = dict(action=plan.action, x0=plan.mean, prev_mean_after=plan.mean)
    steps: dict[str, list[th.Tensor]] = dict(x_tau_in=[], a0_samples=[], values=[], logits=[])
    with th.no_grad():  # once more, step by step
        x = planner.alpha_bar[-1].sqrt() * th.cat([previous[:, 1:], 0 * previous[:, :1]], dim=1).transpose(0, 1)
        for i in range(j):
            tau = j - i
            scale = planner.alpha_bar[tau].sqrt()
            proposals = planner.propose(z, noise.proposals[i])
            std = (1 - planner.alpha_bar[tau]).sqrt() / scale
            actions = planner.sample(x / scale, std.expand_as(x), proposals, noise.samples[i])
            sampled = (noise.samples[i], noise.terminal[i], noise.members[i])
            score, values = planner.model_score(z, x, tau, sampled, planner.num_elites, proposals)
            logits = (values - values.mean()) / values.std() / planner.temperature
            found = dict(x_tau_in=x, a0_samples=actions[:, 0].transpose(0, 1), values=values, logits=logits)
            for name, value in found.items():
                steps[name].append(value)
            x = planner.denoise(x, score, tau)
    compare(ours | {f"iter_{name}": th.stack(values) for name, values in steps.items()}, record, file)


@pytest.mark.parametrize(("variant", "file"), files_of(METHOD, "plan_score*"))
def test_golden_mbdpo_plan_by_score_network(variant: str, file: str) -> None:
    """``plan_score_mc`` samples, too, but makes no use of it: an agent with the network plans by it alone."""
    golden = load(variant, **{} if file == "plan_score_mc" else dict(score_only_inference=True))
    record, planner = golden.read(file), golden.policy.planner
    noise = planner.draw(1, th.Generator(), explore=False)
    plan = planner.plan(golden.world.encode(record["obs"]), th.zeros(1, planner.horizon, planner.action_dim), noise)
    ours = dict(action=plan.action, x0=plan.mean, prev_mean_after=plan.mean)
    compare(ours, {name: value for name, value in record.items() if not name.startswith("iter_")}, file)
