"""
TD-MPC2 against tensors that the official implementation has computed.

The sets are read from the folder named by ``SB3_MPC_GOLDEN`` (``tests/golden`` by default), one folder a variant under
``tdmpc2``. Each test runs on every file of its kind that is there, and compares every array that our code computes,
too; any other array is named in a warning. Weights carry their official names, see ``official_to_ours``.
"""

import json
import os
import warnings
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
from sb3_mpc.common.multitask import MultitaskWorldModelPolicy
from sb3_mpc.common.planning import EXTRA_ITERATIONS, LARGE_ACTION_DIM, PlanNoise
from sb3_mpc.common.running_scale import RunningScale
from sb3_mpc.common.sequence_buffer import SequenceBatch
from sb3_mpc.common.symlog import TwoHot, symexp, symlog
from tests.helpers import SpacesOnlyEnv

GOLDEN = Path(os.environ.get("SB3_MPC_GOLDEN", Path(__file__).parent / "golden")) / "tdmpc2"
TOLERANCE = dict(rtol=1e-4, atol=1e-5)

Arrays = dict[str, th.Tensor]

PARTS = {
    "_encoder.state.": "encoder.head.",
    "_dynamics.": "dynamics.",
    "_reward.": "reward_head.",
    "_termination.": "termination_head.",
    "_pi.": "prior_net.",
    "_Qs.params.": "q_ensemble.layers.",
    "_target_Qs_params.": "q_target.layers.",
    "_task_emb.": "task_embedding.",
}
# Recorded arrays that are inputs here, and those that our code has no counterpart of
INPUTS = {"td_noise", "td_qidx", "pi_noise", "q_avg_idx", "q_min_target_idx", "q_avg_detach_idx"}
INPUTS |= {"obs", "prev_mean_before", "gumbel_choice"}
NOT_OURS = {"info_pi_scaled_entropy", "info_termination_rate", "info_termination_f1"}


def read(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return {name: th.from_numpy(arrays[name].copy()) for name in arrays}


def close(ours: th.Tensor, official: th.Tensor, name: str = "") -> None:
    th.testing.assert_close(
        ours.detach().reshape(official.shape), official.to(ours.dtype), msg=lambda m: f"{name}: {m}", **TOLERANCE
    )


def compare(ours: Arrays, official: Arrays, where: str) -> None:
    for name, value in official.items():
        if name in ours:
            close(ours[name], value, f"{where} {name}")
        elif not name.startswith("draw") and name not in INPUTS | NOT_OURS:
            warnings.warn(f"{where} {name} has not been compared", stacklevel=2)


def official_to_ours(weights: Arrays) -> Arrays:
    """Official state dict -> state dict of our world model, whatever is no weight left out."""
    ours: Arrays = {}
    for name, value in weights.items():
        for official_part, part in PARTS.items():
            if name.startswith(official_part):
                key = part + name.removeprefix(official_part)
                ours[key.replace(".ln.", ".ln_") if part.startswith("q_") else key] = value
    return ours


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


class Golden:
    """One variant: our agent with the official weights, and the recorded arrays."""

    def __init__(self, variant: str) -> None:
        self.folder = GOLDEN / variant
        self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        c: dict[str, Any] = self.manifest["config"]
        self.multitask, gamma = bool(c["multitask"]), self.manifest["discount"]
        observation_space: spaces.Space = spaces.Box(-np.inf, np.inf, tuple(c["obs_shape"]["state"]))
        sizes = ("latent_dim", "enc_dim", "mlp_dim", "num_enc_layers", "num_q", "num_bins", "simnorm_dim")
        ranges = ("vmin", "vmax", "log_std_min", "log_std_max")
        policy_kwargs = {name: c[name] for name in (*sizes, *ranges, "dropout")}
        policy: Any = "MlpPolicy"
        if self.multitask:
            policy = MultitaskWorldModelPolicy
            policy_kwargs |= dict(task_dim=c["task_dim"], action_dims=c["action_dims"], gammas=gamma)
            observation_space = spaces.Dict(obs=observation_space, task=spaces.Discrete(len(c["tasks"])))
            gamma = 0.5  # not used
        iterations = c["iterations"]
        if c["action_dim"] >= LARGE_ACTION_DIM:
            # The official code adds two in place, whether the manifest was written before or after: ask the plans
            plans = sorted(self.folder.glob("plan*.npz"))
            iterations = len(read(plans[0])["iter_actions"]) - EXTRA_ITERATIONS if plans else iterations
        self.model = OfficialOrder(
            policy,
            SpacesOnlyEnv(observation_space, spaces.Box(-1, 1, (c["action_dim"],))),
            learning_rate=c["lr"],
            buffer_size=10,
            batch_size=c["batch_size"],
            tau=c["tau"],
            gamma=gamma,
            horizon=c["horizon"],
            rho=c["rho"],
            consistency_coef=c["consistency_coef"],
            reward_coef=c["reward_coef"],
            value_coef=c["value_coef"],
            termination_coef=c["termination_coef"],
            entropy_coef=c["entropy_coef"],
            enc_lr_scale=c["enc_lr_scale"],
            max_grad_norm=c["grad_clip_norm"],
            episodic=bool(c["episodic"]),
            iterations=iterations,
            num_samples=c["num_samples"],
            num_elites=c["num_elites"],
            num_pi_trajs=c["num_pi_trajs"],
            min_std=c["min_std"],
            max_std=c["max_std"],
            temperature=c["temperature"],
            policy_kwargs=policy_kwargs,
            device="cpu",
        )
        self.policy, self.world = self.model.policy, self.model.policy.world_model
        self.world.load_state_dict(official_to_ours(self.read("weights_init")))

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.npz").exists()

    def read(self, name: str) -> Arrays:
        return read(self.folder / f"{name}.npz")

    def windows(self) -> SequenceBatch:
        b = self.read("batch")
        ones = th.ones_like(b["reward"])
        observations = self.observations(b["obs"], b.get("task"))
        return SequenceBatch(observations, b["action"], b["reward"], b.get("terminated", 0 * ones), ones)

    def observations(self, obs: th.Tensor, task: th.Tensor | None) -> Any:
        return dict(obs=obs, task=task.expand(obs.shape[:-1])) if task is not None and self.multitask else obs

    def features(self, z: th.Tensor) -> th.Tensor:
        """What the official code calls the latent state: without the number of the task."""
        return z[..., : self.world.latent_dim]


def draws(record: Arrays) -> list[th.Tensor]:
    return [record[name] for name in sorted(record) if name.startswith("draw")]


def variants_with(file: str) -> list[str]:
    return sorted(path.parent.name for path in GOLDEN.glob(f"*/{file}.npz"))


def test_golden_tdmpc2_sets_are_there() -> None:
    assert variants_with("weights_init"), f"no golden set found under {GOLDEN}"


@pytest.mark.parametrize("variant", variants_with("forward"))
def test_golden_tdmpc2_forward(variant: str) -> None:
    golden = Golden(variant)
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


def model_terms(golden: Golden, batch: SequenceBatch, noise: UpdateNoise) -> Arrays:
    """Targets, latent states, and the losses of the model step by step without weights."""
    world = golden.world
    with th.no_grad():
        next_z = world.encode(batch.observations)[1:]
        targets = golden.model.value_target(next_z, batch, noise)
        zs = unroll(world, batch, None)
        cross_entropy = world.two_hot.cross_entropy
        return dict(
            td_targets=targets,
            zs=golden.features(zs),
            consistency_per_step=golden.features(zs[1:] - next_z).square().mean((1, 2)),
            reward_per_step=cross_entropy(world.reward(zs[:-1], batch.actions), batch.rewards).mean((1, 2)),
            value_per_step_per_q=cross_entropy(world.value(zs[:-1], batch.actions), targets).mean((2, 3)).T,
        )


@pytest.mark.parametrize("variant", variants_with("update0"))
def test_golden_tdmpc2_updates(variant: str) -> None:
    golden, i = Golden(variant), 0
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


@pytest.mark.parametrize("variant", variants_with("grads_model_update0"))
def test_golden_tdmpc2_model_gradients(variant: str) -> None:
    golden = Golden(variant)
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


PLANS = sorted((path.parent.name, path.stem) for path in GOLDEN.glob("*/plan*.npz"))


@pytest.mark.parametrize(("variant", "plan"), PLANS)
def test_golden_tdmpc2_plan(variant: str, plan: str) -> None:
    golden = Golden(variant)
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
    task = None if args["task"] is None else th.tensor([args["task"]])
    z = golden.world.encode(golden.observations(record["obs"], task))
    previous = record["prev_mean_before"].unsqueeze(0) * (not args["t0"])
    outcome = planner.plan(z, previous, noise)
    chosen = record["iter_elite_idxs"][-1][record["gumbel_choice"]]
    ours = dict(action=outcome.action, prev_mean_after=outcome.mean)
    close(outcome.elite_action, record["iter_actions"][-1][0, chosen], "chosen elite")
    with th.no_grad():  # once more, iteration by iteration
        mask = golden.world.mask_actions
        mean = mask(z, th.cat([previous[:, 1:], th.zeros_like(previous[:, :1])], dim=1).transpose(0, 1))
        std = mask(z, th.full_like(mean, planner.max_std))
        proposals = planner.propose(z, noise.proposals) if planner.num_pi_trajs > 0 else None
        steps: dict[str, list[th.Tensor]] = {}
        for i in range(j):
            actions = planner.sample(mean, std, proposals, noise.samples[i])
            values = planner.evaluate(z, actions, noise.terminal[i], noise.members[i])
            mean, std, weights, elites = planner.refit(actions, values)
            step = dict(actions=actions, value=values, elite_idxs=elites[0], score=weights[0], mean=mean, std=std)
            for name, value in step.items():
                steps.setdefault(f"iter_{name}", []).append(value)
            std = mask(z, std)  # the recording is from before the mask
    for name in ("iter_elite_idxs", "iter_score"):  # their order is of no importance
        steps[name] = [value.sort().values for value in steps[name]]
        record[name] = record[name].reshape(j, -1).sort(1).values
    compare(ours | {name: th.stack(values) for name, values in steps.items()}, record, plan)


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
