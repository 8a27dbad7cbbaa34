"""Commands ``data`` and ``collect``: data sets from agents, from random actions and from other data."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_mpc.agents.training_files import read_buffer
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.checks.arguments import check_range
from sb3_mpc.common.discount import episode_length
from sb3_mpc.common.files import explain_damage
from sb3_mpc.offline import Dataset, merge
from sb3_mpc.offline.layout import DESCRIPTION
from sb3_mpc.offline.writer import DatasetWriter
from sb3_mpc.zoo import rl_zoo
from sb3_mpc.zoo.checkpoint_files import BUFFER, checkpoints_of
from sb3_mpc.zoo.evaluate import find
from sb3_mpc.zoo.run_folder import RUN_FILE
from sb3_mpc.zoo.train import check_options

# Names of the columns of D4RL, and ours
D4RL = dict(terminals="terminated", timeouts="truncated")


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``data``
    """
    if args.action == "describe":
        print(Dataset.load(args.data, args.verify).describe(args.picture))
        if args.picture is not None:
            print(f"Wrote {args.picture}")
        return
    if args.action == "split":
        parts = Dataset.load(args.data).split(args.fraction, args.seed)
        made = [part.save(path, args.overwrite) for part, path in zip(parts, args.output, strict=True)]
    elif args.action == "merge":
        made = [merge([Dataset.load(path) for path in args.data], args.output, args.tasks, args.overwrite)]
    else:
        made = [convert(args.source, args.output, args.tasks, args.overwrite, args.download, args.trust)]
    for data in made:
        print(data.describe())


def convert(
    source: str,
    output: Path,
    tasks: list[str] | None = None,
    overwrite: bool = False,
    download: bool = False,
    trust: bool = False,
) -> Dataset:
    """
    :param source: what to convert, see the help of ``data convert``
    :param output: folder of the new data set
    :param tasks: names of the tasks; of a data set, those to take
    :param overwrite: whether to replace a data set that is there
    :param download: whether Minari may download
    :param trust: whether a ``.pkl`` may be read, which executes what is in it
    :return: the new data set
    :raises ValueError: if it is of no known kind
    """
    path = Path(source).expanduser()
    settings: dict[str, Any] = dict(path=output, overwrite=overwrite) | (dict(tasks=tasks) if tasks else {})
    if (path / DESCRIPTION).exists():
        data = Dataset.load(path)
        return (data.of_tasks(tasks) if tasks else data).save(output, overwrite)
    if path.suffix == ".pt" or any(path.glob("chunk_*.pt")):
        return Dataset.from_official(path, **settings)
    if path.suffix == ".pkl":
        if not trust:
            raise ValueError(f"Reading {path} may run code: if you trust its source, add --trust.")
        with explain_damage(path, "replay buffer"):
            buffer = load_from_pkl(path)
        if not isinstance(buffer, SequenceReplayBuffer):
            raise ValueError(f"{path} holds a {type(buffer).__name__}: give a replay buffer of this package.")
        return Dataset.from_replay_buffer(buffer, **settings)
    if (path / RUN_FILE).exists() or path.name == BUFFER:
        return Dataset.from_replay_buffer(read_buffer(newest_buffer(path)), **settings)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return Dataset.from_arrays(**arrays(dict(file), path), **{"source": path.name, **settings})
    if path.suffix in (".hdf5", ".h5"):
        import h5py

        with h5py.File(path, "r") as file:
            found = {key: value[()] for key, value in file.items() if isinstance(value, h5py.Dataset)}
        return Dataset.from_arrays(**arrays(found, path), **{"source": path.name, **settings})
    return Dataset.from_minari(source if not path.exists() else path, download=download, **settings)


def newest_buffer(path: Path) -> Path:
    """
    :param path: folder of a run, or the file of a replay buffer
    :return: the file of its newest replay buffer
    :raises FileNotFoundError: if it has kept none
    """
    if path.is_file():
        return path
    kept = [
        folder / BUFFER
        for folder in (*checkpoints_of(path / "checkpoints").values(), path)
        if (folder / BUFFER).exists()
    ]
    if not kept:
        raise FileNotFoundError(f"{path} has kept no replay buffer: train with --checkpoint-freq, or collect anew.")
    return max(kept, key=lambda file: file.stat().st_mtime)


def arrays(found: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    """
    :param found: columns of a file, by the names of D4RL or ours
    :param path: the file, for messages
    :return: arguments of ``Dataset.from_arrays``
    :raises ValueError: if a column is missing
    """
    result: dict[str, Any] = {}
    for name, value in found.items():
        column, _, key = name.partition(".")
        column = D4RL.get(column, column)
        if column in ("observations", "next_observations") and key:
            result.setdefault(column, {})[key] = value
        elif column in ("observations", "next_observations", "actions", "rewards", "terminated", "truncated"):
            result[column] = value
    for name in ("observations", "actions", "rewards"):
        if name not in result:
            raise ValueError(f"{path} lacks the column {name!r}: it has {', '.join(sorted(found)) or 'none'}.")
    return result


def collect(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``collect``
    """
    check_options(args, n_timesteps=1, n_envs=1, seed=0)
    if args.random is not None:
        check_range("--random", args.random, 0, 1)
    policy: Any = None
    if args.agent is None and args.algo is None:
        if args.env is None:
            raise ValueError("Where from? Give an agent, or --env for random actions.")
        env_id = rl_zoo.find_environment(args.env)
        env, source = make_vec_env(env_id, args.n_envs, args.seed), "random actions"
        if args.random not in (None, 1):
            raise ValueError("Without an agent all actions are random: leave --random out, or give an agent.")
        args.random = 1.0
    else:
        args.episodes = None  # `find` is that of `evaluate`
        agent = find(args)
        model, env = agent.start(args.n_envs)
        policy, env_id = model.actor if args.actor else model, agent.env_id
        source = f"{type(model).__name__}, {args.agent or 'of the zoo'}"
        env.seed(args.seed)
    length = episode_length(env)
    with DatasetWriter(
        args.output,
        env.observation_space,
        env.action_space,
        tasks=[env_id],
        episode_lengths=[length],
        source=f"{env_id}: {source}" + (f", {args.random:.0%} random" if policy is not None and args.random else ""),
        overwrite=args.overwrite,
    ) as writer:
        rng = np.random.default_rng(args.seed)
        for episode in play(env, policy, args.n_timesteps, args.random or 0.0, args.deterministic, rng):
            writer.add(**episode)
    env.close()
    print(Dataset.load(args.output).describe())


def play(
    env: VecEnv, policy: Any, steps: int, random: float, deterministic: bool, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """
    :param env: environments side by side
    :param policy: agent or policy, None for random actions
    :param steps: number of transitions, all environments together; the last ones of each may be a part of an episode
    :param random: part of the actions that is random
    :param deterministic: whether the policy acts deterministically
    :param rng: source of randomness
    :return: episodes, as ``DatasetWriter.add`` takes them, in the order in which they end
    """
    normalize, count = unwrap_vec_normalize(env), env.num_envs
    box = env.action_space
    assert isinstance(box, spaces.Box)
    now: list[dict[str, list[Any]]] = [dict(observations=[], actions=[], rewards=[]) for _ in range(count)]
    seen: Any = env.reset()
    state, starts = None, np.ones(count, bool)
    left = [(steps + i) // count for i in range(count)]  # transitions of each environment
    while any(left):
        original = seen if normalize is None else normalize.get_original_obs()
        actions = rng.uniform(box.low, box.high, (count, *box.shape)).astype(box.dtype)
        if policy is not None:
            planned, state = policy.predict(seen, state, starts, deterministic=deterministic)
            actions = np.where(rng.random(count).reshape(-1, *[1] * len(box.shape)) < random, actions, planned)
        seen, rewards, starts, infos = env.step(actions)
        rewards = rewards if normalize is None else normalize.get_original_reward()
        behind = seen if normalize is None else normalize.get_original_obs()
        for i in np.flatnonzero(left):
            for name, value in (
                ("observations", at(original, int(i))),
                ("actions", actions[i]),
                ("rewards", rewards[i]),
            ):
                now[i][name].append(value)
            left[i] -= 1
            if starts[i] or left[i] == 0:
                final: Any = at(behind, int(i))
                if starts[i]:
                    final = infos[i]["terminal_observation"]
                    final = final if normalize is None else normalize.unnormalize_obs(final)
                timeout = bool(infos[i].get("TimeLimit.truncated", False))
                yield dict(
                    observations=stacked([*now[i]["observations"], final]),
                    actions=np.stack(now[i]["actions"]),
                    rewards=np.stack(now[i]["rewards"]),
                    terminated=bool(starts[i]) and not timeout,
                    truncated=bool(starts[i]) and timeout,
                )
                now[i] = dict(observations=[], actions=[], rewards=[])


def at(observations: Any, index: int) -> Any:
    """
    :param observations: observations of all environments, an array or a dict of arrays
    :param index: an environment
    :return: a copy of its observation
    """
    if isinstance(observations, dict):
        return {key: np.array(part[index]) for key, part in observations.items()}
    return np.array(observations[index])


def stacked(observations: list[Any]) -> Any:
    """
    :param observations: T observations, arrays or dicts of arrays
    :return: ``[T, *shape]``, or a dict of such arrays
    """
    if isinstance(observations[0], dict):
        return {key: np.stack([part[key] for part in observations]) for key in observations[0]}
    return np.stack(observations)
