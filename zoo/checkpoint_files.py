"""
Checkpoints of runs: folders with model, replay buffer, all other state of the run, such as that of the random number
generators, and their checksums. They hold data only, and reading them executes nothing.
"""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_mpc.agents.data_files import read_data, write_data
from sb3_mpc.agents.training_files import load_training, save_buffer, save_training
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.files import checksum, write_text

SelfAlgorithm = TypeVar("SelfAlgorithm", bound=WorldModelAlgorithm)

# Files of a checkpoint, and the file that is written last, with their checksums
MODEL, BUFFER, STATE = "model.npz", "replay_buffer.npz", "state.npz"
MANIFEST = "checkpoint.json"
NAME = re.compile(r"step_(0|[1-9][0-9]{0,15})")
KEPT = 2


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """
    :param folder: folder of checkpoints, which may hold anything else
    :return: the complete checkpoints by their steps, the newest one first
    """
    found = {path: NAME.fullmatch(path.name) for path in folder.glob("step_*")}
    complete = {int(name[1]): path for path, name in found.items() if name and (path / MANIFEST).is_file()}
    return dict(sorted(complete.items(), reverse=True))


def damage_of(path: Path) -> str | None:
    """
    :param path: checkpoint
    :return: what is wrong with it, None if nothing is
    """
    try:
        sums = dict(json.loads((path / MANIFEST).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{path / MANIFEST} cannot be read"
    for name in (MODEL, BUFFER, STATE):
        try:
            if checksum(path / name) != sums.get(name):
                return f"{path / name} does not match its checksum"
        except OSError as error:
            return f"{path / name} cannot be read ({error.strerror})"
    return None


def is_exact(path: Path) -> bool:
    """
    :param path: checkpoint
    :return: whether a run goes on from it as if it had not been stopped
    """
    try:
        return json.loads((path / MANIFEST).read_text())["exact"] is True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def choose_checkpoint(folder: Path, step: int | None = None) -> Path:
    """
    :param folder: folder of checkpoints
    :param step: step of a checkpoint, the newest that is not damaged if None
    :return: that checkpoint
    :raises FileNotFoundError: if there is none
    :raises ValueError: if it is damaged, or all are
    """
    complete = checkpoints_of(folder)
    if step is not None:
        complete = {known: path for known, path in complete.items() if known == step}
    if not complete:
        if any(folder.glob("step_*/model.zip")):
            raise ValueError(
                f"The checkpoints in {folder} are of an earlier version, whose files may run code: if you "
                "trust them, convert the run by `python -m sb3_mpc.zoo convert RUN NEW --trust`."
            )
        which = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
        raise FileNotFoundError(f"{folder} holds {which}: start the run again.")
    reasons: list[str] = []
    for path in complete.values():
        reason = damage_of(path)
        if reason is None:
            if reasons:
                warnings.warn(f"{'; '.join(reasons)}: going on from {path} instead.", stacklevel=3)
            return path
        reasons.append(reason)
    raise ValueError(f"{folder} holds no checkpoint that is not damaged: {'; '.join(reasons)}.")


def write_checkpoint(path: Path, model: Any, state: dict[str, Any], steps: int, exact: bool) -> None:
    """
    :param path: folder that exists
    :param model: agent
    :param state: state of the run that is in neither model nor replay buffer
    :param steps: steps of the run
    :param exact: whether a run goes on from it as if it had not been stopped
    :raises OSError: if the disk is full, for example
    :raises ValueError: if something is no data
    """
    save_training(model, path / MODEL)
    save_buffer(model, path / BUFFER)
    write_data(path / STATE, state)
    manifest = dict(steps=steps, exact=exact, sha256={name: checksum(path / name) for name in (MODEL, BUFFER, STATE)})
    write_text(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def remove_old_checkpoints(folder: Path) -> None:
    """
    Keep the last two checkpoints, and the last exact one; what is not ours stays.

    :param folder: folder of checkpoints
    """
    complete = list(checkpoints_of(folder).values())
    kept = [*complete[:KEPT], *[path for path in complete if is_exact(path)][:1]]
    for path in (*(path for path in complete if path not in kept), *folder.glob(".step_*.tmp")):
        shutil.rmtree(path, ignore_errors=True)


def load_agent_of_checkpoint(
    path: Path, algorithm: type[SelfAlgorithm], env: VecEnv, device: th.device | str = "auto"
) -> SelfAlgorithm:
    """
    :param path: checkpoint, that of a run which is not finished
    :param algorithm: class of the agent
    :param env: environment to act in, without ``VecNormalize``; act in ``get_env()`` of the agent
    :param device: device of the agent
    :return: the agent, to act
    :raises ValueError: if the checkpoint is damaged, or of another environment
    """
    state = read_data(path / STATE)
    if state.get("normalization") is not None:
        try:
            env = VecNormalize(env, **state["normalization_settings"])
            env.obs_rms, env.ret_rms = state["normalization"]
            env.training, env.norm_reward = False, False
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path / STATE} is not the state of a run: {type(error).__name__}: {error}.") from error
    return load_training(path / MODEL, algorithm, env, device)
