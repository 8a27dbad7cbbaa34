"""
Tensors that official implementations have computed, and agents with the same weights to compare with.

The sets are read from the folder named by ``SB3_MPC_GOLDEN`` (``tests/golden`` by default), one folder a variant under
the folder of the method. Weights carry their official names, see :func:`sb3_mpc.zoo.import_official.official_to_ours`.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mpc import TDMPC2
from sb3_mpc.common.buffers.sequence_buffer import SequenceBatch
from sb3_mpc.common.networks.losses import UpdateNoise, unroll
from sb3_mpc.common.planning.plan import Plan, PlanNoise
from sb3_mpc.common.planning.planner import EXTRA_ITERATIONS, LARGE_ACTION_DIM, MPPIPlanner
from sb3_mpc.common.policies.multitask import MultitaskWorldModelPolicy
from sb3_mpc.zoo.import_official import import_official, official_to_ours
from tests.support import TESTS
from tests.support.agents import SpaceEnv

GOLDEN = Path(os.environ.get("SB3_MPC_GOLDEN", TESTS / "golden"))
TOLERANCE = dict(rtol=1e-4, atol=1e-5)

Arrays = dict[str, th.Tensor]

# Recorded arrays that are inputs here, and those that our code has no counterpart of
INPUTS = {"td_noise", "td_qidx", "pi_noise", "q_avg_idx", "q_min_target_idx", "q_avg_detach_idx"}
INPUTS |= {"obs", "prev_mean_before", "gumbel_choice"}
PLANNING = ("num_samples", "num_elites", "num_pi_trajs", "min_std", "max_std", "temperature")
NOT_OURS = {"info_pi_scaled_entropy", "info_termination_rate", "info_termination_f1"}


def read(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return {name: th.from_numpy(arrays[name].copy()) for name in arrays if arrays[name].dtype.kind != "U"}


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


def read_manifest(method: str, variant: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((GOLDEN / method / variant / "manifest.json").read_text())
    return manifest


class Golden:
    """
    One variant: our agent with the official weights, and the recorded arrays.

    :param algorithm: class of the agent
    :param method: folder of the method
    :param variant: folder of the variant in it
    :param settings: further arguments of the agent
    """

    def __init__(self, algorithm: type[TDMPC2], method: str, variant: str, **settings: Any) -> None:
        self.folder = GOLDEN / method / variant
        self.manifest = read_manifest(method, variant)
        c: dict[str, Any] = self.manifest["config"]
        self.multitask, gamma = bool(c["multitask"]), self.manifest["discount"]
        sizes = ("latent_dim", "enc_dim", "mlp_dim", "num_enc_layers", "num_q", "num_bins", "simnorm_dim")
        ranges = ("vmin", "vmax", "log_std_min", "log_std_max")
        policy_kwargs = {name: c[name] for name in (*sizes, *ranges, "dropout")}
        policy: Any = "MlpPolicy"
        if self.multitask:
            policy = MultitaskWorldModelPolicy
            policy_kwargs |= dict(task_dim=c["task_dim"], action_dims=c["action_dims"], gammas=gamma)
            gamma = 0.5  # not used
        iterations = c.get("iterations")
        if c["action_dim"] >= LARGE_ACTION_DIM:
            # The official code adds two in place, whether the manifest was written before or after: ask the plans
            plans = sorted(self.folder.glob("plan*.npz"))
            iterations = len(read(plans[0])["iter_actions"]) - EXTRA_ITERATIONS if plans else iterations
        planner = {name: c[name] for name in PLANNING if name in c}
        self.model = algorithm(
            policy,
            self.env(),
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
            termination_coef=c.get("termination_coef", 1.0),
            entropy_coef=c["entropy_coef"],
            enc_lr_scale=c["enc_lr_scale"],
            max_grad_norm=c["grad_clip_norm"],
            policy_kwargs=policy_kwargs,
            device="cpu",
            **dict(episodic=bool(c.get("episodic")), iterations=iterations) | planner | settings,
        )
        self.policy, self.world = self.model.policy, self.model.policy.world_model
        self.world.load_state_dict(official_to_ours(self.read("weights_init")))

    def env(self) -> SpaceEnv:
        c = self.manifest["config"]
        space: spaces.Space = spaces.Box(-np.inf, np.inf, tuple(c["obs_shape"]["state"]))
        if self.multitask:
            space = spaces.Dict(obs=space, task=spaces.Discrete(len(c["tasks"])))
        return SpaceEnv(space, spaces.Box(-1, 1, (c["action_dim"],)))

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


class Imported(Golden):
    """
    The agent of a variant of TD-MPC2 from an official checkpoint, told only what no checkpoint tells.

    :param variant: folder of the variant
    :param path: checkpoint
    :param with_env: whether the environment is given, too
    """

    def __init__(self, variant: str, path: Path, with_env: bool = True) -> None:
        self.folder, self.manifest = GOLDEN / "tdmpc2" / variant, read_manifest("tdmpc2", variant)
        c: dict[str, Any] = self.manifest["config"]
        self.multitask = bool(c["multitask"])
        self.model = import_official(
            path,
            self.env() if with_env else None,
            c.get("episode_lengths"),
            policy_kwargs={name: c[name] for name in ("simnorm_dim", "vmin", "vmax")},
            device="cpu",
            **{name: c[name] for name in (*PLANNING, "horizon", "iterations")},
        )
        self.policy, self.world = self.model.policy, self.model.policy.world_model


def draws(record: Arrays) -> list[th.Tensor]:
    return [record[name] for name in sorted(record) if name.startswith("draw")]


def files_of(method: str, pattern: str) -> list[tuple[str, str]]:
    """:return: pairs of variant and file, of the variants whose weights are there"""
    paths = (GOLDEN / method).glob(f"*/{pattern}.npz")
    return sorted((path.parent.name, path.stem) for path in paths if (path.parent / "weights_init.npz").exists())


def variants_with(method: str, file: str) -> list[str]:
    return [variant for variant, _ in files_of(method, file)]


def model_terms(golden: Golden, batch: SequenceBatch, noise: UpdateNoise) -> Arrays:
    """Targets, latent states, and the losses of the model step by step without weights."""
    world = golden.world
    with th.no_grad():
        next_z = world.encode(batch.observations)[1:]
        targets = golden.model.value_target(next_z, batch, noise)
        zs = unroll(world, batch, None)
        cross_entropy = world.two_hot.loss
        return dict(
            td_targets=targets,
            zs=golden.features(zs),
            consistency_per_step=golden.features(zs[1:] - next_z).square().mean((1, 2)),
            reward_per_step=cross_entropy(world.reward(zs[:-1], batch.actions), batch.rewards).mean((1, 2)),
            value_per_step_per_q=cross_entropy(world.value(zs[:-1], batch.actions), targets).mean((2, 3)).T,
        )


def policy_gradients(golden: Golden, loss: th.Tensor) -> Arrays:
    """Gradients of the policy before clipping, by the names of the world model's parameters."""
    parameters = {f"prior_net.{name}": p for name, p in golden.world.prior_net.named_parameters()}
    return dict(zip(parameters, th.autograd.grad(loss, list(parameters.values()), retain_graph=True), strict=True))


def plan_steps(planner: MPPIPlanner, z: th.Tensor, previous: th.Tensor, noise: PlanNoise) -> Arrays:
    """
    A plan once more, iteration by iteration.

    :param planner: planner
    :param z: latent states ``[E, D]``
    :param previous: mean of the previous plans ``[E, H, A]``
    :param noise: random numbers
    :return: what the official plan records of its J iterations, environments first ``[J, E, ...]``
    """
    with th.no_grad():
        mask = planner.world_model.mask_actions
        mean = mask(z, th.cat([previous[:, 1:], th.zeros_like(previous[:, :1])], dim=1).transpose(0, 1))
        std = mask(z, th.full_like(mean, planner.max_std))
        proposals = planner.propose(z, noise.proposals) if planner.num_pi_trajs > 0 else None
        steps: dict[str, list[th.Tensor]] = {}
        for i in range(planner.iterations):
            actions = planner.sample(mean, std, proposals, noise.samples[i])
            values = planner.evaluate(z, actions, noise.terminal[i], noise.members[i])
            mean, std, weights, elites = planner.refit(actions, values)
            step = dict(actions=actions.transpose(0, 1), value=values, elite_idxs=elites, score=weights)
            step |= dict(mean=mean.transpose(0, 1), std=std.transpose(0, 1))
            for name, value in step.items():
                steps.setdefault(f"iter_{name}", []).append(value)
            std = mask(z, std)  # the recording is from before the mask
    return {name: th.stack(values) for name, values in steps.items()}


def compare_plan(
    golden: Golden, record: Arrays, where: str, noise: PlanNoise, planner: MPPIPlanner | None = None, **ours: Any
) -> Plan:
    """
    Compare a plan with a recorded one, and each of its iterations.

    :param golden: agent
    :param record: recorded arrays
    :param where: name of the file
    :param noise: random numbers of the plan
    :param planner: planner, the agent's by default
    :param ours: functions of the plan by the names that their results have in the record
    :return: our plan
    """
    planner, args = planner or golden.policy.planner, golden.manifest[where]["args"]
    task = None if args.get("task") is None else th.tensor([args["task"]])
    z = golden.world.encode(golden.observations(record["obs"], task))
    previous = th.zeros(len(z), planner.horizon, planner.action_dim)
    if not args["t0"]:
        previous = record["prev_mean_before"].reshape(previous.shape)
    plan = planner.plan(z, previous, noise)
    steps = plan_steps(planner, z, previous, noise)
    for name in ("iter_elite_idxs", "iter_score"):  # their order is of no importance
        steps[name] = steps[name].sort(-1).values
        record[name] = record[name].reshape(steps[name].shape).sort(-1).values
    results = {name: function(plan) for name, function in ours.items()}
    if not args.get("reanalyze"):  # which leaves the warm start alone
        results["prev_mean_after"] = plan.mean
    else:
        del record["prev_mean_after"]
    compare(dict(action=plan.action) | results | steps, record, where)
    return plan
