"""
Convert agents of the official TD-MPC2 code (https://github.com/nicklashansen/tdmpc2) and of the official MBDPO code
(https://github.com/Edmond1Cheng/MBDPO) to agents of this package:
``python -m sb3_mpc.zoo import-official FILE.pt --env dmc/dog-run-v0``.

A checkpoint holds weights alone. Sizes are inferred from them; what cannot be inferred (horizon, planner, range of the
bins, size of a simplex) is assumed to be the official default. The running scale of the values is not in it either, so
that further training starts with a scale of one, nor are the statistics of MBDPO's energy, which start at zero and one.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv

import sb3_mpc.envs  # noqa: F401
from sb3_mpc import MBDPO, TDMPC2
from sb3_mpc.agents.agent_files import Budget, build_agent, save_agent
from sb3_mpc.common.discount import discount_from_episode_length
from sb3_mpc.envs.multitask import TASK_SETS
from sb3_mpc.offline.official import EPISODE_LENGTHS

Tensors = dict[str, th.Tensor]

# Prefixes of official names, and of the names in our world model
PARTS = {
    "_encoder.state.": "encoder.head.",
    **{f"_encoder.rgb.{i + 2}.": f"encoder.features_extractor.cnn.{i}." for i in (0, 2, 4, 6)},
    "_dynamics.": "dynamics.",
    "_reward.": "reward_head.",
    "_termination.": "termination_head.",
    "_pi.": "prior_net.",
    "_Qs.params.": "q_ensemble.layers.",
    "_target_Qs_params.": "q_target.layers.",
    "_target_Qs.params.": "q_target.layers.",
    "_task_emb.": "task_embedding.",
}
# Of MBDPO, in its planner
PLANNER_PARTS = {"_F.": "energy_head.", "_score.": "score_net."}
# Until December 2024, the tensors of an ensemble were numbered, four a layer
STACKED = ("weight", "bias", "ln.weight", "ln.bias")
# Names of the tasks in the sets mt30 and mt80, by number of tasks
NAMES = {len(TASK_SETS[name]): TASK_SETS[name] for name in ("mt30", "mt80")}


def official_to_ours(weights: Tensors, parts: dict[str, str] = PARTS) -> Tensors:
    """
    :param weights: official state dict, of either layout
    :param parts: prefixes of official names and of ours
    :return: state dict of our world model, or of the module that the parts belong to; other tensors are left out
    """
    ours: Tensors = {}
    for name, value in weights.items():
        for official, part in parts.items():
            rest = name.removeprefix(official)
            if rest != name and not rest.startswith("__"):
                if part.startswith("q_"):
                    rest = f"{int(rest) // 4}.{STACKED[int(rest) % 4]}" if rest.isdigit() else rest
                    rest = rest.replace(".ln.", ".ln_")
                ours[part + rest] = value
    return ours


def import_official(
    path: str | Path,
    env: GymEnv | str | None = None,
    episode_lengths: Sequence[int] | None = None,
    action_dims: Sequence[int] | None = None,
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> TDMPC2:
    """
    :param path: official checkpoint, ``.pt``; nothing but tensors is read from it
    :param env: environment of the agent; if None, its spaces are inferred from the weights
    :param episode_lengths: decisions in an episode of each task, for an agent of several tasks that is neither mt30 nor
        mt80
    :param action_dims: number of action dimensions of each task, if the checkpoint does not hold them
    :param policy_kwargs: arguments of the policy that were not the official defaults
    :param kwargs: arguments of the agent
    :return: the agent, with ``MultitaskPolicy`` if it has several tasks; an ``MBDPO`` if the checkpoint has an energy,
        with a score network if that was trained
    :raises ValueError: if the file is not such a checkpoint, or the environment does not fit
    """
    official = read_tensors(path)
    with _explained(path), Budget(official.values()):
        return _import(path, official, env, episode_lengths, action_dims, policy_kwargs, kwargs)


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """Turn any error that unchecked tensors cause into one clear sentence."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} is no checkpoint of the official TD-MPC2 or MBDPO ({reason}).") from error


def _import(
    path: str | Path,
    official: Tensors,
    env: GymEnv | str | None,
    episode_lengths: Sequence[int] | None,
    action_dims: Sequence[int] | None,
    policy_kwargs: dict[str, Any] | None,
    kwargs: dict[str, Any],
) -> TDMPC2:
    """See :func:`import_official`; the tensors are not checked."""
    weights = official_to_ours(official)
    try:
        policy, inferred, observation_space, action_dim = infer_sizes(weights)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{path} is no checkpoint of the official TD-MPC2 or MBDPO: it has no {error.args[0]}, known by our name."
        ) from error
    if "log_std_min" in official:
        low = float(official["log_std_min"])
        inferred |= dict(log_std_min=low, log_std_max=low + float(official["log_std_dif"]))
    if policy == "MultitaskPolicy":
        tasks = len(weights["task_embedding.weight"])
        lengths = episode_lengths or EPISODE_LENGTHS.get(tasks)
        dims = action_dims or (official["_action_masks"].sum(1).int().tolist() if "_action_masks" in official else None)
        for name, values in (("episode_lengths", lengths), ("action_dims", dims)):
            if values is None or len(values) != tasks:
                raise ValueError(f"{path} has {tasks} tasks and does not tell their {name}: give {tasks} numbers.")
        if tasks in NAMES and episode_lengths is None:
            inferred["task_names"] = list(NAMES[tasks])
        inferred |= dict(action_dims=list(dims or ()), gammas=[discount_from_episode_length(n) for n in lengths or ()])
    arguments: dict[str, Any] = dict(
        episodic="termination_head.2.weight" in weights or "auto",
        policy_kwargs={**inferred, **(policy_kwargs or {})},
        **kwargs,
    )
    action_space = spaces.Box(-1, 1, (action_dim,), np.float32)
    planner_weights = official_to_ours(official, PLANNER_PARTS)
    algorithm = MBDPO if planner_weights else TDMPC2
    if planner_weights:
        arguments = infer_diffusion(planner_weights, weights, action_dim) | arguments
        if not arguments["use_score_network"]:
            planner_weights = {n: value for n, value in planner_weights.items() if not n.startswith("score_net.")}
    model: TDMPC2
    if env is None:
        model = build_agent(algorithm, policy, observation_space, action_space, **arguments)  # type: ignore[assignment]
    else:
        model = algorithm(policy, env, **arguments)
        check_sizes(path, model, observation_space, action_dim)
    planner = model.policy.planner
    try:
        model.policy.world_model.load_state_dict(weights)
        planner.load_state_dict({**planner.state_dict(), **planner_weights})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:250]
        name = "MBDPO" if planner_weights else "TD-MPC2"
        raise ValueError(f"{path} does not fit the networks of {name} of its sizes: {reason}.") from error
    return model


def read_tensors(path: str | Path) -> Tensors:
    """
    :param path: official checkpoint
    :return: its state dict
    :raises ValueError: if it is no such file, or holds anything but tensors
    """
    try:
        content = th.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever an unchecked file causes
        raise ValueError(
            f"{path} was refused, and nothing in it executed: it is damaged, or holds something else than tensors."
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} is not a checkpoint of the official TD-MPC2 or MBDPO: it holds a {type(content).__name__}."
        )
    return {str(name): value for name, value in state.items() if isinstance(value, th.Tensor)}


def infer_sizes(weights: Tensors) -> tuple[str, dict[str, Any], spaces.Space, int]:
    """
    :param weights: state dict of our world model
    :return: policy, its arguments, space of the observations and number of action dimensions
    :raises KeyError: if a weight is missing
    """
    size = {name: len(weights[f"{name}.bias"]) for name in ("dynamics.0", "dynamics.2", "reward_head.2", "prior_net.2")}
    arguments: dict[str, Any] = dict(
        latent_dim=size["dynamics.2"],
        mlp_dim=size["dynamics.0"],
        num_bins=size["reward_head.2"],
        num_q=len(weights["q_ensemble.layers.0.weight"]),
    )
    image = weights.get("encoder.features_extractor.cnn.0.weight")
    if image is not None and "encoder.head.0.weight" not in weights:
        arguments["features_extractor_kwargs"] = dict(num_channels=len(image))
        return "CnnPolicy", arguments, spaces.Box(0, 255, (image.shape[1], 64, 64), np.uint8), size["prior_net.2"] // 2
    layers = [name for name in weights if name.startswith("encoder.head.") and name.count(".") == 3]
    arguments |= dict(enc_dim=len(weights["encoder.head.0.bias"]))
    arguments |= dict(num_enc_layers=sum(name.endswith(".weight") for name in layers))
    embedding = weights.get("task_embedding.weight")
    task_dim = 0 if embedding is None else embedding.shape[1]
    numbers = spaces.Box(-np.inf, np.inf, (weights["encoder.head.0.weight"].shape[1] - task_dim,), np.float32)
    if embedding is None:
        return "MlpPolicy", arguments, numbers, size["prior_net.2"] // 2
    space = spaces.Dict(obs=numbers, task=spaces.Discrete(len(embedding)))
    return "MultitaskPolicy", {**arguments, "task_dim": task_dim}, space, size["prior_net.2"] // 2


def infer_diffusion(planner: Tensors, model: Tensors, action_dim: int) -> dict[str, Any]:
    """
    The official code creates a score network even if it trains none. All biases of such a network are zero.

    :param planner: state dict of MBDPO's planner
    :param model: state dict of the world model
    :param action_dim: number of action dimensions A
    :return: arguments of MBDPO; the score network, if there is one, also tells the horizon
    """
    biases = [value for name, value in planner.items() if name.startswith("score_net.") and name.endswith("bias")]
    arguments: dict[str, Any] = dict(use_score_network=any(bias.any() for bias in biases))
    if biases:
        plan_dim = len(planner["score_net.2.bias"])
        arguments["horizon"] = plan_dim // action_dim
        inputs = planner["score_net.0.weight"].shape[1] - model["prior_net.0.weight"].shape[1]
        arguments["time_embed_dim"] = inputs - plan_dim
    return arguments


def check_sizes(path: str | Path, model: TDMPC2, observation_space: spaces.Space, action_dim: int) -> None:
    """
    :param path: file, for the message
    :param model: agent in the environment that was given
    :param observation_space: space that the weights are made for
    :param action_dim: number of action dimensions that they are made for
    :raises ValueError: if the environment has others
    """
    sizes = (spaces.flatdim(observation_space), action_dim)
    given = (spaces.flatdim(model.observation_space), spaces.flatdim(model.action_space))
    if sizes != given:
        raise ValueError(
            f"{path} was trained with {sizes[0]} observations and {sizes[1]} actions, the environment given has "
            f"{given[0]} and {given[1]}: give the environment that it was trained in."
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of the command
    """
    parser.add_argument("file", type=Path, help="official checkpoint (.pt); unpickling is restricted to tensors")
    parser.add_argument("--env", help="environment of the agent, such as dmc/dog-run-v0; not for several tasks")
    parser.add_argument("--output", type=Path, help="file to write, by default FILE.safetensors beside it")
    parser.add_argument("--episode-lengths", type=int, nargs="+", help="decisions in an episode of each task")
    parser.add_argument("--action-dims", type=int, nargs="+", help="action dimensions of each task")


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    model = import_official(args.file, args.env, args.episode_lengths, args.action_dims, device="cpu")
    output = args.output or args.file.with_suffix(".safetensors")
    note = f"imported from the official checkpoint {args.file.name}"
    print(f"Wrote {save_agent(model, output, note=note, steps=None)}")
