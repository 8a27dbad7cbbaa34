"""
Agents in the middle of their training as files that hold data only: all that ``save`` and ``save_replay_buffer`` keep,
so that a run continues from them bit for bit, and reading them executes nothing.

What is no data, such as a schedule that is a function, or a class of the user's, is left out and named in the file:
:func:`load_training` needs it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces

from sb3_mpc.agents.data_files import is_data, read_data, write_data
from sb3_mpc.common.buffers.plan_buffer import PlanReplayBuffer
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.persistence import Persistence, global_randomness_kept, method_name

SelfAlgorithm = TypeVar("SelfAlgorithm", bound=OffPolicyAlgorithm)

# Attributes that follow from others, or belong to the environment, which begins a new episode
DERIVED = {"lr_schedule", "_last_obs", "_last_original_obs", "_last_episode_starts", "_plan_state"}
# How the next call says what the file has left out
ARGUMENTS = {"policy_class": "policy"}


def save_training(model: OffPolicyAlgorithm, path: Path) -> None:
    """
    :param model: the agent
    :param path: file to write, ``.npz``; an existing one is replaced only when the new one is complete
    :raises ValueError: if a parameter is NaN or infinite: nothing could be learned from there on
    """
    names, variables = model._get_torch_save_params()
    excluded = {*model._excluded_save_params(), *DERIVED, *(name.partition(".")[0] for name in (*names, *variables))}
    attributes = {name: value for name, value in vars(model).items() if name not in excluded}
    if isinstance(model, Persistence):
        attributes["_rng_state"] = model.rng_state()
    data = {name: value for name, value in attributes.items() if is_data(value)}
    parameters = model.get_parameters()
    check_finite_parameters(parameters["policy"])
    content = dict(
        algorithm=method_name(type(model)),
        attributes=data,
        left_out={name: f"{attributes[name]!r:.100}" for name in attributes.keys() - data.keys()},
        parameters=parameters,
        variables={name: recursive_getattr(model, name) for name in variables},
    )
    write_data(path, content)


def check_finite_parameters(parameters: dict[str, th.Tensor]) -> None:
    """
    :param parameters: of a policy, by name
    :raises ValueError: if one is NaN or infinite
    """
    for name, value in parameters.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"The agent has diverged: {name} is NaN or infinite. Go on from an earlier checkpoint with a lower "
                "learning_rate or smaller rewards."
            )


def load_training(
    path: Path, algorithm: type[SelfAlgorithm], env: GymEnv, device: th.device | str = "auto", **kwargs: Any
) -> SelfAlgorithm:
    """
    :param path: file written by :func:`save_training`
    :param algorithm: class of the agent
    :param env: environment to continue with
    :param device: device of the agent
    :param kwargs: arguments to change, and those that the file has left out
    :return: the agent; its replay buffer is empty
    :raises ValueError: if the file is damaged, of another method or environment, or an argument is missing
    """
    content = read_data(path)
    with _described(path, algorithm.__name__):
        saved_by, data, left_out = (content[name] for name in ("algorithm", "attributes", "left_out"))
        data = {str(name): value for name, value in data.items()}
        _ = {name: content[name] for name in ("parameters", "variables")}
    if saved_by != method_name(algorithm):
        raise ValueError(f"{path} is of {saved_by!r:.100}, not of {method_name(algorithm)}: use that class.")
    for name, kept in left_out.items():
        known = ARGUMENTS.get(name, name)
        if known not in kwargs and not name.startswith("_"):
            raise ValueError(f"{path} cannot hold {known}, which was {kept!s:.100}: give it again, as {known}=...")
    with _described(path, algorithm.__name__):
        venv = algorithm._wrap_env(env, int(data["verbose"]))
    try:
        check_for_correct_spaces(venv, data["observation_space"], data["action_space"])
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} was trained in another environment than the one given: {error}.") from error
    with _described(path, algorithm.__name__), global_randomness_kept("seed" not in kwargs):
        policy = kwargs.pop("policy", None) or data["policy_class"]
        model: SelfAlgorithm = algorithm(policy, venv, device=device, _init_setup_model=False)  # type: ignore[call-arg]
        vars(model).update({**data, **kwargs, "policy_class": model.policy_class, "n_envs": venv.num_envs})
        model._setup_model()
        model.set_parameters(content["parameters"], exact_match=True, device=device)
        for name, value in content["variables"].items():
            if value is not None and name in model._get_torch_save_params()[1]:
                recursive_setattr(model, f"{name}.data", value.data)
        if isinstance(model, Persistence):
            model.restore_rng_state("seed" in kwargs)
    return model


def save_buffer(model: OffPolicyAlgorithm, path: Path) -> None:
    """
    :param model: an agent, whose replay buffer is saved
    :param path: file to write, ``.npz``
    """
    buffer: Any = model.replay_buffer
    state = buffer.__getstate__()
    state = dict(vars(buffer)) if state is None or not isinstance(state, dict) else dict(state)
    state.pop("env", None)  # SB3's hindsight buffer
    write_data(path, dict(buffer=type(buffer).__name__, state=state))


def load_buffer(model: OffPolicyAlgorithm, path: Path) -> None:
    """
    :param model: an agent, whose replay buffer is filled
    :param path: file written by :func:`save_buffer`
    :raises ValueError: if it is damaged, or of another kind of buffer
    """
    content, buffer = read_data(path), cast(Any, model.replay_buffer)
    with _described(path, type(buffer).__name__):
        kind, state = str(content["buffer"]), dict(content["state"])
        for name in ("observation_space", "action_space", "n_envs", "buffer_size"):
            if kind != type(buffer).__name__ or state[name] != getattr(buffer, name):
                raise ValueError(f"it is a {kind:.100} whose {name} is {state[name]!r:.100}")
        _restore(buffer, state, model.device)
        if hasattr(buffer, "set_env"):
            buffer.set_env(model.env)


def _restore(buffer: Any, state: dict[str, Any], device: th.device | str) -> None:
    rows = [state[name] for name in getattr(type(buffer), "row_arrays", ()) if name in state]
    if any(len(row) > state["buffer_size"] for row in rows):
        raise ValueError("it has more rows than its size")
    state["device"] = th.device(device)
    restore: Any = getattr(buffer, "__setstate__", buffer.__dict__.update)
    restore(state)


def read_buffer(path: Path) -> SequenceReplayBuffer:
    """
    :param path: file written by :func:`save_buffer`
    :return: the replay buffer
    :raises ValueError: if it is damaged, or a buffer of SB3 or of hindsight goals
    """
    content = read_data(path)
    with _described(path, "replay buffer of sequences"):
        kinds = {kind.__name__: kind for kind in (SequenceReplayBuffer, PlanReplayBuffer)}
        state, names = dict(content["state"]), ("buffer_size", "observation_space", "action_space", "n_envs")
        buffer = kinds[str(content["buffer"])](**{name: state[name] for name in names})
        _restore(buffer, state, "cpu")
    return buffer


@contextmanager
def _described(path: Path, kind: str) -> Iterator[None]:
    """Turn any error that unchecked content causes into one clear sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{path} does not hold a {kind} that can be restored ({reason}).") from error
