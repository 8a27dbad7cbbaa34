"""
TD-MPC2 against tensors that the official implementation has computed.

Each test runs on every file of its kind that is there, and compares every array that our code computes, too; any other
array is named in a warning. See ``tests/support/golden.py`` for where the sets are.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mpc import TDMPC2
from sb3_mpc.common.discount import discount_from_episode_length
from sb3_mpc.common.networks.encoders import Encoder, PixelExtractor, random_shift
from sb3_mpc.common.networks.gaussian import bound_log_std, gaussian_log_prob, squash_correction
from sb3_mpc.common.networks.layers import NormedLinear, SimNorm
from sb3_mpc.common.networks.losses import UpdateNoise, model_losses, unroll
from sb3_mpc.common.networks.running_scale import RunningScale
from sb3_mpc.common.networks.two_hot import TwoHot, symexp, symlog
from sb3_mpc.common.planning.plan import PlanNoise
from sb3_mpc.zoo.import_official import STACKED, official_to_ours
from tests.support.golden import (
    GOLDEN,
    Arrays,
    Golden,
    Imported,
    close,
    compare,
    compare_plan,
    draws,
    files_of,
    model_terms,
    read,
    variants_with,
)


class OfficialOrder(TDMPC2):
    """
    TD-MPC2 that keeps the gradients of its policy loss, and with several tasks has a fault of the official code.

    There, the policy loss's gradient with respect to the task embedding is not cleared, so that it is added to that of
    the next model loss. Our policy step trains the policy prior alone; the fault is re-made here to compare updates.
    """

    leak_coef = 1.0
    leak: th.Tensor | None = None
    pi_gradients: Arrays

    def policy_loss(self, *args: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        loss, logs = super().policy_loss(*args)
        parameters = {
            name: parameter
            for name, parameter in self.policy.world_model.named_parameters()
            if name.startswith(("prior_net.", "task_embedding."))
        }
        gradients = th.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        self.pi_gradients = dict(zip(parameters, gradients, strict=True))
        self.leak = self.pi_gradients.get("task_embedding.weight")
        return loss, logs

    def extra_losses(self, *args: Any) -> dict[str, th.Tensor]:
        if self.leak is None:
            return {}
        return dict(leak=(self.policy.world_model.task_embedding.weight * self.leak).sum())


def load(variant: str) -> Golden:
    return Golden(OfficialOrder, "tdmpc2", variant)


def test_golden_tdmpc2_sets_are_there() -> None:
    assert variants_with("tdmpc2", "weights_init"), f"no golden set found under {GOLDEN}"


@pytest.mark.parametrize("variant", variants_with("tdmpc2", "forward"))
def test_golden_tdmpc2_forward(variant: str) -> None:
    check_forward(load(variant))


def check_forward(golden: Golden) -> None:
    model, world, batch, record = golden.model, golden.world, golden.windows(), golden.read("forward")
    decode, a = world.two_hot.decode, batch.actions
    z = world.encode(batch.observations)
    z0 = z[:-1]
    mean, log_std = world.prior(z)
    ours = dict(
        z=golden.features(z),
        next_z=golden.features(world.next(z0, a)),
        reward_logits=world.reward(z0, a),
        reward=decode(world.reward(z0, a)),
        q_logits=world.value(z0, a),
        q_values=decode(world.value(z0, a)),
        q_target_logits=world.value(z0, a, target=True),
        q_target_values=decode(world.value(z0, a, target=True)),
        pi_raw=world.prior_net(world.inputs(z)),
        pi_mean=th.tanh(mean),
        pi_log_std=log_std,
    )
    if "termination_logit" in record:
        logit = world.termination(z)
        ours |= dict(termination_logit=logit, termination_prob=logit.sigmoid())
    for name, kwargs in dict(q_avg={}, q_avg_detach=dict(detach=True), q_min_target=dict(target=True)).items():
        if name in record:
            values = decode(world.value(z0, a, record[f"{name}_idx"][:2], **kwargs))
            ours[name] = values.amin(0) if "min" in name else values.mean(0)
    if "pi_noise" in record:
        action, noise = world.act(z, record["pi_noise"]), world.mask_actions(z, record["pi_noise"])
        log_prob = gaussian_log_prob(noise, log_std)
        ours |= dict(pi_action=action, pi_entropy=squash_correction(action) - log_prob)
        ours |= dict(pi_scaled_entropy=-world.num_actions(z) * log_prob)
    if "td_noise" in record:
        td_noise, members = record["td_noise"], record["td_qidx"][:2]
        ours["td_target"] = model.value_target(z[1:], batch, UpdateNoise(None, td_noise, members, td_noise, members))
    compare(ours, record, "forward")


@pytest.mark.parametrize("variant", variants_with("tdmpc2", "update0"))
def test_golden_tdmpc2_updates(variant: str) -> None:
    golden, i = load(variant), 0
    model, batch = golden.model, golden.windows()
    while golden.has(f"update{i}"):
        record, where = golden.read(f"update{i}"), f"update {i}"
        target_noise, target_members, policy_noise, policy_members = draws(record)
        noise = UpdateNoise(None, target_noise, target_members[:2], policy_noise, policy_members[:2])
        ours = model_terms(golden, batch, noise)
        logs = model.update(batch, noise)
        ours |= {f"info_{name}": value for name, value in logs.items()}
        parts = ("consistency", "reward", "value", "termination")
        total = sum(getattr(model, f"{part}_coef") * logs.get(f"{part}_loss", 0.0) for part in parts)
        ours |= dict(info_total_loss=total, info_termination_loss=logs.get("termination_loss", th.zeros(())))
        ours |= dict(model_grad_norm=logs["grad_norm"], pi_grad_norm=logs["pi_grad_norm"])
        ours["scale_value_after"] = golden.policy.running_scale.value
        compare(ours, record, where)
        if golden.has(f"grads_pi_update{i}"):
            gradients = official_to_ours(golden.read(f"grads_pi_update{i}"))
            compare(model.pi_gradients, gradients, f"{where} policy gradient of")
        if golden.has(f"weights_after_update{i}"):
            compare(golden.world.state_dict(), official_to_ours(golden.read(f"weights_after_update{i}")), where)
        i += 1
    files = [path.name for path in golden.folder.glob("update*.npz")]
    assert len(files) == i, f"only {i} of {files} were consecutive"


@pytest.mark.parametrize("variant", variants_with("tdmpc2", "grads_model_update0"))
def test_golden_tdmpc2_model_gradients(variant: str) -> None:
    golden = load(variant)
    model, world, batch = golden.model, golden.world, golden.windows()
    target_noise, target_members, policy_noise, policy_members = draws(golden.read("update0"))
    noise = UpdateNoise(None, target_noise, target_members[:2], policy_noise, policy_members[:2])
    with th.no_grad():
        next_z = world.encode(batch.observations)[1:]
        targets = model.value_target(next_z, batch, noise)
    losses = model_losses(world, batch, unroll(world, batch, None), next_z, targets, model.rho)
    th.stack([getattr(model, f"{name}_coef") * loss for name, loss in losses.items()]).sum().backward()
    gradients = {name: p.grad for name, p in world.named_parameters() if p.grad is not None}
    official = official_to_ours(golden.read("grads_model_update0"))
    assert gradients.keys() == official.keys()
    compare(gradients, official, "model gradient of")


@pytest.mark.parametrize(("variant", "plan"), files_of("tdmpc2", "plan*"))
def test_golden_tdmpc2_plan(variant: str, plan: str) -> None:
    check_plan(load(variant), plan)


def check_plan(golden: Golden, plan: str) -> None:
    record, planner, args = golden.read(plan), golden.policy.planner, golden.manifest[plan]["args"]
    h, j, rest = planner.horizon, planner.iterations, draws(record)
    assert len(record["iter_actions"]) == j
    proposal_noise = th.zeros(h, 1, 0, planner.action_dim)
    if planner.num_pi_trajs > 0:
        proposal_noise, rest = th.stack(rest[:h]).unsqueeze(1), rest[h:]
    samples, terminal, members = (rest[k : 3 * j : 3] for k in range(3))
    rest = rest[3 * j :]
    noise = PlanNoise(
        proposals=proposal_noise,
        samples=th.stack(samples).unsqueeze(2),
        terminal=th.stack(terminal).unsqueeze(1),
        members=th.stack([permutation[:2] for permutation in members]),
        selection=rest[0].reshape(1, -1),
        exploration=None if args["eval_mode"] else rest[1].reshape(1, -1),
    )
    assert len(rest) == (1 if args["eval_mode"] else 2)
    chosen = record["iter_elite_idxs"][-1][record["gumbel_choice"]]
    outcome = compare_plan(golden, record, plan, noise)
    close(outcome.elite_action, record["iter_actions"][-1][0, chosen], "chosen elite")


def check_imported(variant: str, path: Path, with_env: bool = True) -> None:
    imported = Imported(variant, path, with_env)
    check_forward(imported)
    for plan in imported.folder.glob("plan*.npz"):
        check_plan(imported, plan.stem)


@pytest.mark.parametrize("old_layout", [False, True], ids=["present layout", "old layout"])
@pytest.mark.parametrize("variant", variants_with("tdmpc2", "forward"))
def test_golden_tdmpc2_imported_weights(variant: str, old_layout: bool, tmp_path: Path) -> None:
    weights: dict[str, Any] = load(variant).read("weights_init")
    masks = weights.get("_action_masks")
    if old_layout:  # as before December 2024: tensors of ensembles numbered, fewer buffers
        weights = {in_old_layout(name): value for name, value in weights.items() if not name.startswith("log_std")}
    else:
        copies = {name.replace("_Qs.params", "_detach_Qs_params"): value for name, value in weights.items()}
        weights |= {name: value for name, value in copies.items() if "_detach_" in name}
        weights |= {"_Qs.params.__batch_size": th.Size([5]), "_Qs.params.__device": th.device("cuda")}
    th.save({"model": weights}, tmp_path / "agent.pt")
    check_imported(variant, tmp_path / "agent.pt", with_env=not old_layout or masks is None)


def in_old_layout(name: str) -> str:
    match = re.fullmatch(r"_(target_)?Qs[._]params\.(\d+)\.(.*)", name)
    return f"_{match[1] or ''}Qs.params.{4 * int(match[2]) + STACKED.index(match[3])}" if match else name


@pytest.mark.parametrize("path", sorted((GOLDEN / "tdmpc2").glob("*.pt")), ids=lambda path: path.stem)
def test_golden_tdmpc2_official_checkpoint(path: Path) -> None:
    check_imported("clip", path)  # its weights are those of this set


MATHS = GOLDEN / "tdmpc2" / "math.npz"


@pytest.mark.skipif(not MATHS.exists(), reason="this golden folder has no math.npz")
def test_golden_tdmpc2_maths() -> None:
    m = read(MATHS)
    two_hot = TwoHot(101, -10, 10)
    close(symlog(m["sym_x"]), m["symlog"])
    close(symexp(m["symexp_x"]), m["symexp"])
    close(two_hot.encode(m["two_hot_x"]), m["two_hot"])
    close(two_hot.decode(m["two_hot_inv_logits"]), m["two_hot_inv"])
    close(two_hot.loss(m["soft_ce_logits"], m["soft_ce_target"]), m["soft_ce"])
    close(SimNorm(8)(m["simnorm_x"]), m["simnorm"])
    close(bound_log_std(m["log_std_x"], -10, 2), m["log_std"])
    close(gaussian_log_prob(m["glp_eps"], m["glp_log_std"]), m["gaussian_logprob"])
    close(th.tanh(m["squash_mu"]), m["squash_mu_out"])
    squashed = th.tanh(m["squash_pi"])
    close(squashed, m["squash_pi_out"])
    close(m["squash_logpi_in"] - squash_correction(squashed), m["squash_logpi_out"])
    for length, discount in zip(m["discount_episode_length"].tolist(), m["discount"].tolist(), strict=True):
        assert discount_from_episode_length(length) == pytest.approx(discount, rel=1e-9)
    scale = RunningScale(0.01)
    for x, after in zip(m["scale_x"], m["scale_value_after_each"], strict=True):
        scale.update(x)
        close(scale.value, after, "running scale")
    close(scale(m["scale_forward_x"]), m["scale_forward"])
    layer = NormedLinear(m["nl_w"].shape[1], m["nl_w"].shape[0])
    layer.load_state_dict(layer.state_dict() | {"weight": m["nl_w"], "bias": m["nl_b"]})
    close(layer(m["nl_x"]), m["nl_y"])


PIXEL = GOLDEN / "tdmpc2" / "pixel.npz"


@pytest.mark.skipif(not PIXEL.exists(), reason="this golden folder has no pixel.npz")
def test_golden_tdmpc2_pixel_encoder() -> None:
    p = read(PIXEL)
    space = spaces.Box(0, 255, tuple(p["img"].shape[1:]), np.uint8)
    convolutions = [name.split(".")[0] for name in p if name.endswith(".weight")]
    extractor = PixelExtractor(space, num_channels=p[f"{convolutions[0]}.weight"].shape[0])
    encoder = Encoder(space, extractor, latent_dim=p["out"].shape[1])
    layers = [layer for layer in extractor.cnn if isinstance(layer, th.nn.Conv2d)]
    for layer, name in zip(layers, convolutions, strict=True):
        layer.load_state_dict({"weight": p[f"{name}.weight"], "bias": p[f"{name}.bias"]})
    shift = p["shift_int"].reshape(-1, 2).long()
    # the official shift interpolates: whole pixels up to rounding, and the record is in half precision
    th.testing.assert_close(random_shift(p["img"], shift).float(), p["shifted"].float(), rtol=1e-3, atol=2e-3)
    close(encoder(p["img"], shift), p["out"], "features")
