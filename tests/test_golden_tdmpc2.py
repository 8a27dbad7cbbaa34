"""
TD-MPC2 against tensors that the official implementation has computed.

The sets are read from the folder named by ``SB3_MPC_GOLDEN`` (``tests/golden`` by default), one folder a variant under
``tdmpc2``. Weights carry their official names; the mapping to ours is in ``official_to_ours``.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mpc import TDMPC2
from sb3_mpc.common.discount import discount_from_episode_length
from sb3_mpc.common.encoders import Encoder, PixelExtractor, random_shift
from sb3_mpc.common.gaussian import bound_log_std, gaussian_log_prob, squash_correction
from sb3_mpc.common.layers import NormedLinear, SimNorm
from sb3_mpc.common.losses import UpdateNoise, model_losses, unroll
from sb3_mpc.common.planning import PlanNoise
from sb3_mpc.common.running_scale import RunningScale
from sb3_mpc.common.sequence_buffer import SequenceBatch
from sb3_mpc.common.symlog import TwoHot, symexp, symlog
from tests.helpers import SpacesOnlyEnv

GOLDEN = Path(os.environ.get("SB3_MPC_GOLDEN", Path(__file__).parent / "golden")) / "tdmpc2"
VARIANTS = sorted(path.parent.name for path in GOLDEN.glob("*/manifest.json"))
TOLERANCE = dict(rtol=1e-4, atol=1e-5)

Arrays = dict[str, th.Tensor]


def read(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return {name: th.from_numpy(arrays[name].copy()) for name in arrays}


def close(ours: th.Tensor, official: th.Tensor, name: str = "") -> None:
    th.testing.assert_close(
        ours.detach().reshape(official.shape), official.to(ours.dtype), msg=lambda m: f"{name}: {m}", **TOLERANCE
    )


def official_to_ours(weights: Arrays) -> Arrays:
    """Official state dict -> state dict of our policy, whatever is no weight left out."""
    ours: Arrays = {}
    for name, value in weights.items():
        if name.startswith("_encoder.state."):
            key = "encoder.head." + name.removeprefix("_encoder.state.")
        elif name.startswith("_dynamics."):
            key = name.removeprefix("_")
        elif name.startswith("_reward."):
            key = "reward_head." + name.removeprefix("_reward.")
        elif name.startswith("_termination."):
            key = "termination_head." + name.removeprefix("_termination.")
        elif name.startswith("_pi."):
            key = "prior_net." + name.removeprefix("_pi.")
        elif name.startswith(("_Qs.params.", "_target_Qs_params.")):
            ensemble, rest = (
                ("q_ensemble", name.removeprefix("_Qs.params."))
                if "_Qs.params." in name
                else ("q_target", name.removeprefix("_target_Qs_params."))
            )
            layer, parameter = rest.split(".", 1)
            key = f"{ensemble}.layers.{layer}." + parameter.replace("ln.", "ln_")
        elif name == "_task_emb.weight":
            key = "task_embedding"
        else:
            continue
        ours[f"world_model.{key}"] = value
    return ours


class Golden:
    """One variant: our agent with the official weights, and the recorded arrays."""

    def __init__(self, variant: str) -> None:
        self.folder = GOLDEN / variant
        self.config: dict[str, Any] = (manifest := json.loads((self.folder / "manifest.json").read_text()))["config"]
        c = self.config
        self.multitask = bool(c["multitask"])
        observation_space = spaces.Box(-np.inf, np.inf, tuple(c["obs_shape"]["state"]))
        env = SpacesOnlyEnv(observation_space, spaces.Box(-1, 1, (c["action_dim"],)))
        policy_kwargs = {
            name: c[name]
            for name in (
                "latent_dim",
                "enc_dim",
                "mlp_dim",
                "num_enc_layers",
                "num_q",
                "num_bins",
                "vmin",
                "vmax",
                "simnorm_dim",
                "dropout",
                "log_std_min",
                "log_std_max",
            )
        }
        policy: Any = "MlpPolicy"
        if self.multitask:
            policy = MultitaskWorldModelPolicy
            policy_kwargs |= dict(task_dim=c["task_dim"], action_dims=c["action_dims"], gammas=manifest["discount"])
        planner = {
            name: c[name]
            for name in (
                "horizon",
                "iterations",
                "num_samples",
                "num_elites",
                "num_pi_trajs",
                "min_std",
                "max_std",
                "temperature",
            )
        }
        if c["action_dim"] >= 20:  # the recorded number includes the two that the official code adds
            planner["iterations"] -= 2
        self.model = TDMPC2(
            policy, env, learning_rate=c["lr"], batch_size=c["batch_size"], tau=c["tau"],
            gamma=0.99 if self.multitask else manifest["discount"], rho=c["rho"],
            consistency_coef=c["consistency_coef"], reward_coef=c["reward_coef"], value_coef=c["value_coef"],
            termination_coef=c["termination_coef"], entropy_coef=c["entropy_coef"], enc_lr_scale=c["enc_lr_scale"],
            max_grad_norm=c["grad_clip_norm"], episodic=bool(c["episodic"]), buffer_size=10, device="cpu", **planner,
            policy_kwargs=policy_kwargs,
        )  # fmt: skip
        self.policy, self.world = self.model.policy, self.model.policy.world_model
        self.load("weights_init")
        self.batch = self.read("batch")

    def read(self, name: str) -> Arrays:
        return read(self.folder / f"{name}.npz")

    def load(self, name: str) -> None:
        self.policy.load_state_dict(official_to_ours(self.read(name)) | {"running_scale.value": th.ones(1)})

    def windows(self) -> SequenceBatch:
        b = self.batch
        terminated = b["terminated"] if "terminated" in b else th.zeros_like(b["reward"])
        return SequenceBatch(
            self.observations(b["obs"]), b["action"], b["reward"], terminated, th.ones_like(b["reward"])
        )

    def observations(self, obs: th.Tensor) -> Any:
        if not self.multitask:
            return obs
        return {"obs": obs, "task": self.batch["task"].expand(obs.shape[:-1])}

    def with_context(self, z: th.Tensor) -> th.Tensor:
        return z

    def without_context(self, z: th.Tensor) -> th.Tensor:
        return z[..., : self.config["latent_dim"]]

    def plan_observation(self, obs: th.Tensor, task: int | None) -> Any:
        return obs

    def update_noise(self, record: Arrays) -> UpdateNoise:
        draws = [record[name] for name in sorted(record) if name.startswith("draw")]
        return UpdateNoise(None, draws[0], draws[1][:2], draws[2], draws[3][:2])


@pytest.fixture(params=VARIANTS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_golden_tdmpc2_sets_are_there() -> None:
    assert VARIANTS, f"no golden set found under {GOLDEN}"


def test_golden_tdmpc2_forward(golden: Golden) -> None:
    world, batch, record = golden.world, golden.windows(), golden.read("forward")
    decode = world.two_hot.decode
    z = world.encode(batch.observations)
    close(z, record["z"], "z")
    z = golden.with_context(record["z"])
    z0, a = z[:-1], batch.actions
    close(golden.without_context(world.next(z0, a)), record["next_z"], "next_z")
    close(world.reward(z0, a), record["reward_logits"], "reward_logits")
    close(decode(world.reward(z0, a)), record["reward"], "reward")
    close(world.value(z0, a), record["q_logits"], "q_logits")
    close(world.value(z0, a, target=True), record["q_target_logits"], "q_target_logits")
    close(decode(world.value(z0, a)), record["q_values"], "q_values")
    close(decode(world.value(z0, a, record["q_avg_idx"][:2])).mean(0), record["q_avg"], "q_avg")
    close(
        decode(world.value(z0, a, record["q_min_target_idx"][:2], target=True)).amin(0), record["q_min_target"], "q_min"
    )
    close(decode(world.value(z0, a, record["q_avg_detach_idx"][:2], detach=True)).mean(0), record["q_avg_detach"])
    mean, log_std = world.prior(z)
    close(th.tanh(mean), record["pi_mean"], "pi_mean")
    close(log_std, record["pi_log_std"], "pi_log_std")
    action = world.act(z, record["pi_noise"])
    close(action, record["pi_action"], "pi_action")


def test_golden_tdmpc2_td_target(golden: Golden) -> None:
    record, batch = golden.read("forward"), golden.windows()
    noise = UpdateNoise(None, record["td_noise"], record["td_qidx"][:2], record["pi_noise"], record["q_avg_idx"][:2])
    next_z = golden.world.encode(batch.observations)[1:]
    close(golden.model.value_target(next_z, batch, noise), record["td_target"], "td_target")


def test_golden_tdmpc2_three_updates(golden: Golden) -> None:
    for i in range(3):
        record = golden.read(f"update{i}")
        batch, noise = golden.windows(), golden.update_noise(record)
        logs = golden.model.update(batch, noise)
        for ours, official in (
            ("consistency_loss",) * 2,
            ("reward_loss",) * 2,
            ("value_loss",) * 2,
            ("pi_loss",) * 2,
            ("pi_entropy",) * 2,
            ("pi_scale",) * 2,
            ("grad_norm", "model_grad_norm"),
            ("pi_grad_norm",) * 2,
        ):
            name = official if official in record else f"info_{official}"
            close(logs[ours], record[name], f"update {i} {ours}")
        if golden.policy.episodic:
            close(logs["termination_loss"], record["info_termination_loss"], f"update {i} termination_loss")
        close(golden.policy.running_scale.value, record["scale_value_after"], "scale")
        if i in (0, 2):
            after = official_to_ours(golden.read(f"weights_after_update{i}"))
            state = golden.policy.state_dict()
            for name, value in after.items():
                close(state[name], value, f"after update {i}: {name}")


def test_golden_tdmpc2_gradients_and_targets(golden: Golden) -> None:
    record, batch, model = golden.read("update0"), golden.windows(), golden.model
    noise = golden.update_noise(record)
    with th.no_grad():
        next_z = golden.world.encode(batch.observations)[1:]
        targets = model.value_target(next_z, batch, noise)
    close(targets, record["td_targets"], "td_targets")
    zs = unroll(golden.world, batch, None)
    close(golden.without_context(zs), record["zs"], "zs")
    losses = model_losses(golden.world, batch, zs, next_z, targets, model.rho)
    sum(getattr(model, f"{name}_coef") * loss for name, loss in losses.items()).backward()
    parameters = {f"world_model.{name}": p for name, p in golden.world.named_parameters()}
    for name, gradient in official_to_ours(golden.read("grads_model_update0")).items():
        close(parameters[name].grad, gradient, f"gradient of {name}")


def test_golden_tdmpc2_policy_gradients(golden: Golden) -> None:
    # the policy step sees the latent states from before the model step and the values from after it
    record = golden.read("update0")
    model, batch, noise = golden.model, golden.windows(), golden.update_noise(record)
    zs = unroll(golden.world, batch, None).detach()
    norm, clip = None, th.nn.utils.clip_grad_norm_
    model.update(batch, noise)
    golden_after = golden.policy.state_dict()
    before = official_to_ours(golden.read("weights_init"))
    prior = {name: value for name, value in before.items() if ".prior_net." in name}
    target = {name: value for name, value in before.items() if ".q_target." in name}
    golden.policy.load_state_dict({**golden_after, **prior, **target, "running_scale.value": th.ones(1)})
    loss, _ = model.policy_loss(zs, batch, noise)
    gradients = th.autograd.grad(loss, list(golden.world.prior_net.parameters()))
    named = dict(
        zip(
            [f"world_model.prior_net.{n}" for n, _ in golden.world.prior_net.named_parameters()], gradients, strict=True
        )
    )
    for name, gradient in official_to_ours(golden.read("grads_pi_update0")).items():
        close(named[name], gradient, f"gradient of {name}")


@pytest.mark.parametrize("plan", ["plan_t0_eval", "plan_t0_train", "plan_warm_train"])
def test_golden_tdmpc2_plan(golden: Golden, plan: str) -> None:
    record, planner = golden.read(plan), golden.policy.planner
    args = json.loads((golden.folder / "manifest.json").read_text())[plan]["args"]
    draws = [record[name] for name in sorted(record) if name.startswith("draw")]
    h, j = planner.horizon, planner.iterations
    per_iteration = [draws[h + 3 * i : h + 3 * i + 3] for i in range(j)]
    rest = draws[h + 3 * j :]
    noise = PlanNoise(
        proposals=th.stack(draws[:h]).unsqueeze(1),
        samples=th.stack([d[0] for d in per_iteration]).unsqueeze(2),
        terminal=th.stack([d[1] for d in per_iteration]).unsqueeze(1),
        members=th.stack([d[2][:2] for d in per_iteration]),
        selection=rest[0].reshape(1, -1),
        exploration=None if args["eval_mode"] else rest[1].reshape(1, -1),
    )
    assert len(rest) == (1 if args["eval_mode"] else 2)
    with th.no_grad():
        z = golden.world.encode(golden.plan_observation(record["obs"], args["task"]))
        previous = record["prev_mean_before"].unsqueeze(0)
        previous = th.zeros_like(previous) if args["t0"] else previous
        outcome = planner.plan(z, previous, noise)
        close(outcome.action[0], record["action"], "action")
        close(outcome.mean[0], record["prev_mean_after"], "mean")
        # every iteration on its own
        mean = th.cat([previous[:, 1:], th.zeros_like(previous[:, :1])], dim=1).transpose(0, 1)
        std = th.full_like(mean, planner.max_std)
        proposals = planner.propose(z, noise.proposals)
        for i in range(j):
            actions = planner.sample(mean, std, proposals, noise.samples[i])
            close(actions[:, 0], record["iter_actions"][i], f"actions {i}")
            values = planner.evaluate(z, actions, noise.terminal[i], noise.members[i])
            close(values[0], record["iter_value"][i], f"values {i}")
            mean, std, weights, elites = planner.refit(actions, values)
            assert th.equal(elites[0].sort().values, record["iter_elite_idxs"][i].sort().values), f"elites {i}"
            close(weights[0].sort().values, record["iter_score"][i].flatten().sort().values, f"scores {i}")
            close(mean[:, 0], record["iter_mean"][i], f"mean {i}")
            close(std[:, 0], record["iter_std"][i], f"std {i}")


MATHS = GOLDEN / "math.npz"


@pytest.mark.skipif(not MATHS.exists(), reason="this golden folder has no math.npz")
def test_golden_tdmpc2_maths() -> None:
    m = read(MATHS)
    two_hot = TwoHot(101, -10, 10)
    close(symlog(m["sym_x"]), m["symlog"])
    close(symexp(m["symexp_x"]), m["symexp"])
    close(two_hot.encode(m["two_hot_x"]), m["two_hot"])
    close(two_hot.decode(m["two_hot_inv_logits"]), m["two_hot_inv"])
    close(two_hot.cross_entropy(m["soft_ce_logits"], m["soft_ce_target"]), m["soft_ce"])
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


PIXEL = GOLDEN / "pixel.npz"


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
