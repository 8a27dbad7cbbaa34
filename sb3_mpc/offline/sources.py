"""Episodes from arrays, replay buffers and Minari, as :meth:`sb3_mpc.offline.writer.DatasetWriter.add` takes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.discount import env_attribute, env_spec, episode_length
from sb3_mpc.offline.layout import TASK

Observations = np.ndarray | dict[str, np.ndarray]


def space_of(observations: Observations) -> spaces.Space:
    """
    :param observations: ``[M, *shape]``, or a dict of such arrays
    :return: an unbounded space for them; 0 to 255 for images, the smallest one for task indices
    """
    if isinstance(observations, dict):
        parts = {key: np.asarray(part) for key, part in observations.items()}
        return spaces.Dict(
            {
                key: spaces.Discrete(int(part.max()) + 1) if key == TASK and part.dtype.kind in "iu" else space_of(part)
                for key, part in parts.items()
            }
        )
    array = np.asarray(observations)
    if array.dtype == np.uint8 and array.ndim > 2:
        return spaces.Box(0, 255, array.shape[1:], np.uint8)
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        return spaces.Box(limits.min, limits.max, array.shape[1:], array.dtype.type)
    return spaces.Box(-np.inf, np.inf, array.shape[1:], array.dtype.type if array.dtype.kind == "f" else np.float32)


def of_arrays(
    observations: Observations,
    actions: np.ndarray,
    rewards: np.ndarray,
    next_observations: Observations | None,
    terminated: np.ndarray | None,
    truncated: np.ndarray | None,
) -> Iterator[dict[str, Any]]:
    """
    :param observations: see :meth:`sb3_mpc.offline.Dataset.from_arrays`
    :param actions: see there
    :param rewards: see there
    :param next_observations: see there
    :param terminated: see there
    :param truncated: see there
    :return: episodes
    :raises ValueError: if the arrays have different lengths, or a termination has no observation behind it
    """
    now = named(observations, "observations")
    behind = {} if next_observations is None else named(next_observations, "next_observations")
    size = len(rewards)
    ended = np.zeros(size, bool) if terminated is None else np.asarray(terminated).astype(bool).reshape(-1)
    cut = np.zeros(size, bool) if truncated is None else np.asarray(truncated).astype(bool).reshape(-1)
    lengths = {name: len(part) for name, part in (*now.values(), *behind.values())}
    lengths |= dict(actions=len(actions), terminated=len(ended), truncated=len(cut))
    for name, length in lengths.items():
        if length != size:
            raise ValueError(f"There are {length} {name}, but {size} rewards: give one of each for each transition.")
    if behind and behind.keys() != now.keys():
        raise ValueError(f"next_observations have the keys {sorted(behind)}, observations {sorted(now)}.")
    if not behind and ended.any():
        raise ValueError(
            "Terminations need next_observations: the observation that ended an episode is not among the observations."
        )
    ends = np.flatnonzero(ended | cut) + 1
    ends = ends if len(ends) and ends[-1] == size else np.append(ends, size)
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        last = end if behind else end - 1  # the last transition that has an observation behind it
        if last <= start:
            continue
        final = behind or now
        parts: Any = {
            key: np.concatenate([part[start:last], final[key][1][end - 1 : end]]) for key, (_, part) in now.items()
        }
        yield dict(
            observations=parts if isinstance(observations, dict) else parts[""],
            actions=np.asarray(actions[start:last]),
            rewards=np.asarray(rewards[start:last]),
            terminated=bool(ended[end - 1]),
            truncated=bool(cut[end - 1] and not ended[end - 1]),
        )


def named(observations: Observations, name: str) -> dict[str, tuple[str, np.ndarray]]:
    """
    :param observations: array, or dict of arrays
    :param name: name of the argument
    :return: names for messages and arrays, by key; ``""`` for an array
    """
    if isinstance(observations, dict):
        return {key: (f"{name}[{key!r}]", np.asarray(part)) for key, part in observations.items()}
    return {"": (name, np.asarray(observations))}


def of_buffer(buffer: SequenceReplayBuffer) -> Iterator[dict[str, Any]]:
    """
    :param buffer: a replay buffer
    :return: its episodes
    """
    plain = not isinstance(buffer.observation_space, spaces.Dict)
    for episode in buffer.episodes():
        found = episode._asdict()
        yield {**found, "observations": found["observations"][""] if plain else found["observations"], "scaled": True}


def tasks_of(env: GymEnv | None) -> dict[str, Any]:
    """
    :param env: environment, or a vectorised one
    :return: what it tells of its tasks, as arguments of :class:`sb3_mpc.offline.writer.DatasetWriter`
    """
    if env is None:
        return {}
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    names, dims, lengths = (env_attribute(vec_env, name) for name in ("task_names", "action_dims", "task_lengths"))
    if dims is not None and lengths is not None:  # those of sb3_mpc.envs.make_multitask
        return dict(tasks=None if names is None else list(names), action_dims=dims, episode_lengths=lengths)
    spec = env_spec(vec_env)
    return dict(tasks=None if spec is None else [spec.id], episode_lengths=[episode_length(vec_env)])


def find_minari(source: str | Path, download: bool) -> Any:
    """
    :param source: id or folder
    :param download: whether it may be downloaded
    :return: the ``minari.MinariDataset``
    :raises ImportError: if minari is not installed
    :raises FileNotFoundError: if there is none
    :raises ValueError: if its actions are not continuous
    """
    try:
        import minari
    except ImportError as error:
        raise ImportError('Minari data need minari: pip install "sb3-mpc[offline]".') from error
    folder = Path(source)
    try:
        if folder.is_dir():
            inside = folder / "data"
            data = minari.MinariDataset(inside if inside.is_dir() else folder)
        else:
            data = minari.load_dataset(str(source), download=download)
    except (FileNotFoundError, ValueError, KeyError, OSError) as error:
        raise FileNotFoundError(
            f"There is no Minari data set {source} ({' '.join(str(error).split())[:150]}): give its folder, or an id "
            "that `minari list local` shows; `minari download ID` gets one."
        ) from error
    return data


def of_minari(data: Any) -> Iterator[dict[str, Any]]:
    """
    :param data: a ``minari.MinariDataset``
    :return: its episodes
    """
    for episode in data.iterate_episodes():
        if len(episode.rewards) == 0:
            continue
        yield dict(
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminated=bool(episode.terminations[-1]),
            truncated=bool(episode.truncations[-1] and not episode.terminations[-1]),
        )
