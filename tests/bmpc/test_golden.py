"""BMPC against tensors that the official implementation has computed; see ``tests/support/golden.py``."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_mpc import BMPC
from sb3_mpc.common.buffers.sequence_buffer import SequenceBatch
from sb3_mpc.common.execution.gradients import gradient_step
from sb3_mpc.common.networks.gaussian import gaussian_kl, gaussian_log_prob
from sb3_mpc.common.networks.losses import UpdateNoise
from sb3_mpc.common.planning.plan import PlanNoise
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

METHOD = "bmpc"


def load(variant: str) -> Golden:
    config = read_manifest(METHOD, variant)["config"]
    names = ("td_horizon", "reanalyze_interval", "reanalyze_batch_size", "expl_log_std_min", "expl_log_std_max")
    return Golden(BMPC, METHOD, variant, **{name: config[name] for name in names})


def windows(golden: Golden, expert: th.Tensor) -> SequenceBatch:
    plans = th.stack(expert.chunk(2, dim=-1))
    return golden.windows()._replace(plans=plans, planned=~plans[0].isnan().any(-1, keepdim=True))


def update_noise(golden: Golden, rest: list[th.Tensor]) -> UpdateNoise:
    """Draws of the value target, of its pair of networks and, with a policy step, of the policy."""
    steps = golden.model.td_horizon
    target, members, policy = th.stack(rest[:steps]), rest[steps], rest[steps + 1 :]
    assert len(policy) <= 1
    return UpdateNoise(None, target, members[:2], policy[0] if policy else target[0], members[:2])


def draws_of_plan(golden: Golden, rest: list[th.Tensor], envs: int, explore: bool) -> tuple[PlanNoise, list[th.Tensor]]:
    """The official order is proposals, then samples and networks of each iteration, elites, exploration noise."""
    planner = golden.policy.planner
    h, j = planner.horizon, planner.iterations
    proposals, rest = th.stack(rest[:h]), rest[h:]
    samples, members, rest = rest[: 2 * j : 2], rest[1 : 2 * j : 2], rest[2 * j :]
    noise = PlanNoise(
        proposals=proposals,
        samples=th.stack(samples).transpose(1, 2),
        terminal=th.zeros(j, 0),
        members=th.stack([permutation[:2] for permutation in members]),
        selection=rest[0],
        exploration=rest[1].expand(envs, -1) if explore else None,
    )
    return noise, rest[2 if explore else 1 :]


def test_golden_bmpc_sets_are_there() -> None:
    assert variants_with(METHOD, "weights_init"), f"no golden set found under {GOLDEN / METHOD}"


@pytest.mark.parametrize("variant", variants_with(METHOD, "forward"))
def test_golden_bmpc_forward(variant: str) -> None:
    golden = load(variant)
    model, world, record = golden.model, golden.world, golden.read("forward")
    expert = golden.read("batch")["expert_action_dist"]
    batch, decode = windows(golden, expert), world.two_hot.decode
    z = world.encode(batch.observations)
    z0, (mean, log_std) = z[:-1], world.gaussian(z)
    low, high = model.expl_log_std_min, model.expl_log_std_max
    explore = low + (high - low) * (log_std - world.log_std_min) / (world.log_std_max - world.log_std_min)
    kl = gaussian_kl(mean[:-1], log_std[:-1].exp(), *batch.plans)
    td = [record[name] for name in sorted(record) if name.startswith("td_draw")]
    ours = dict(
        z=z,
        next_z=world.next(z0, batch.actions),
        reward_logits=world.reward(z0, batch.actions),
        v_logits=world.value(z0),
        v_values=decode(world.value(z0)),
        v_target_logits=world.value(z0, target=True),
        v_target_values=decode(world.value(z0, target=True)),
        v_avg=decode(world.value(z0, members=record["v_avg_idx"][:2])).mean(0),
        v_min=decode(world.value(z0, members=record["v_min_idx"][:2])).amin(0),
        pi_raw=world.prior_net(z),
        td_target_V=model.value_target(z[1:], batch, update_noise(golden, td)),
        kl_elementwise=kl,
        kl_mean_over_action=kl.mean(-1, keepdim=True),
    )
    for name, act, std in (("pi", world.act, log_std), ("pi_expl", model._reanalyzer.act, explore)):
        log_prob = gaussian_log_prob(record[f"{name}_noise"], std)
        ours |= {f"{name}_mean": mean, f"{name}_log_std": std, f"{name}_action": act(z, record[f"{name}_noise"])}
        ours |= {f"{name}_entropy": -log_prob, f"{name}_scaled_entropy": -world.action_dim * log_prob}
    inputs = ("td_draw", "v_avg_idx", "v_min_idx", "pi_noise", "pi_expl_noise")
    compare(ours, {name: value for name, value in record.items() if not name.startswith(inputs)}, "forward")


@pytest.mark.parametrize("variant", variants_with(METHOD, "update_pi"))
def test_golden_bmpc_policy_loss(variant: str) -> None:
    golden = load(variant)
    model, record, scale = golden.model, golden.read("update_pi"), golden.policy.running_scale
    scale.value.copy_(record["scale_before"])
    (eps,) = draws(record)
    batch = windows(golden, record["expert_action_dist"])
    loss, logs = model.policy_loss(record["zs"], batch, UpdateNoise(None, eps, eps, eps, eps))
    log_std = golden.world.gaussian(record["zs"][:-1])[1]
    log_prob = gaussian_log_prob(eps, log_std)
    ours = dict(scale_after=scale.value, info_pi_scale=scale.value, info_pi_loss=loss, info_pi_log_std=log_std)
    ours |= dict(info_pi_entropy=-log_prob, info_pi_scaled_entropy=-golden.world.action_dim * log_prob)
    close(logs["pi_entropy"], record["info_pi_entropy"].mean())
    gradients = policy_gradients(golden, loss)
    ours["grad_norm"] = ours["info_pi_grad_norm"] = gradient_step(golden.policy.pi_optimizer, loss, model.max_grad_norm)
    inputs = ("grad__", "zs", "expert_action_dist", "scale_before")
    compare(ours, {name: value for name, value in record.items() if not name.startswith(inputs)}, "update_pi")
    official = official_to_ours({k.removeprefix("grad_"): v for k, v in record.items() if k.startswith("grad__")})
    assert gradients.keys() == official.keys()
    compare(gradients, official, "policy gradient of")


def compare_update(golden: Golden, file: str, batch: SequenceBatch, noise: UpdateNoise, train_policy: bool) -> None:
    record, model = golden.read(file), golden.model
    ours = model_terms(golden, batch, noise)
    logs = model.update(batch, noise, train_policy)
    ours |= {f"info_{name}": value for name, value in logs.items()}
    total = sum(getattr(model, f"{part}_coef") * logs[f"{part}_loss"] for part in ("consistency", "reward", "value"))
    ours |= dict(info_total_loss=total, model_grad_norm=logs["grad_norm"])
    assert batch.plans is not None
    ours |= dict(scale_value_after=golden.policy.running_scale.value)
    ours |= dict(expert_used=th.cat(batch.plans_or(0.0, 1.0), dim=-1))
    inputs = ("storage", "index", "update_count", "info_pi_log_std")  # the last one is the mean of a policy_loss array
    compare(ours, {name: value for name, value in record.items() if not name.startswith(inputs)}, file)
    weights = official_to_ours(golden.read(f"weights_after_{file}"))
    assert len(weights) == len(golden.world.state_dict())
    compare(golden.world.state_dict(), weights, file)


@pytest.mark.parametrize("file", ["update_pretrain", "update_plain"])
@pytest.mark.parametrize("variant", variants_with(METHOD, "update_plain"))
def test_golden_bmpc_updates(variant: str, file: str) -> None:
    golden = load(variant)
    batch = windows(golden, golden.read("batch")["expert_action_dist_with_nan"])
    compare_update(golden, file, batch, update_noise(golden, draws(golden.read(file))), file != "update_pretrain")


@pytest.mark.parametrize("variant", variants_with(METHOD, "update_reanalyze"))
def test_golden_bmpc_reanalyze(variant: str) -> None:
    golden = load(variant)
    model, record = golden.model, golden.read("update_reanalyze")
    count, h, rows = model.reanalyze_batch_size, model.horizon, len(record["storage_expert_action_dist_after"])
    noise, rest = draws_of_plan(golden, draws(record), count * h, explore=True)
    # The official buffer keeps a plan in the row after its state: place index[t + 1] belongs to step t
    buffer_index = np.stack([record["index"][1:].numpy(), np.zeros_like(record["index"][1:].numpy())])
    batch = windows(golden, golden.read("batch")["expert_action_dist_with_nan"])._replace(buffer_index=buffer_index)
    buffer = model.replay_buffer
    buffer.plans = np.full((rows, 1, 2, golden.world.action_dim), np.nan, dtype=np.float32)
    buffer.planned = np.zeros((rows, 1), dtype=bool)
    batch = model.reanalyze(batch, count, noise)
    written = th.from_numpy(buffer.plans[:, 0].reshape(rows, -1))
    for row in record["index"][1:, :count].flatten().tolist():
        close(written[row], record["storage_expert_action_dist_after"][row], f"stored plan of row {row}")
    assert (~written.isnan()).any(1).sum() == buffer.planned.sum() == len(record["index"][1:, :count].unique())
    compare_update(golden, "update_reanalyze", batch, update_noise(golden, rest), train_policy=True)


@pytest.mark.parametrize(("variant", "file"), files_of(METHOD, "plan*"))
def test_golden_bmpc_plan(variant: str, file: str) -> None:
    golden = load(variant)
    record, args = golden.read(file), golden.manifest[file]["args"]
    noise, rest = draws_of_plan(golden, draws(record), args["batch"], not args["eval_mode"])
    assert not rest
    planner = golden.model._reanalyzer if args["reanalyze"] else golden.policy.planner
    stored: dict[str, Any] = dict(
        action_dist=lambda plan: th.cat([*golden.model.plan_to_store(plan)], dim=-1),
        action_value=lambda plan: plan.elite_value,
    )
    compare_plan(golden, record, file, noise, planner, **stored)
