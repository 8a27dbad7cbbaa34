"""
Trained agents as files that hold data only: one ``.safetensors`` file with the policy's tensors, and a header, the
card, that describes the agent. Loading a file executes nothing from it.

A loaded agent can act and can be trained further, but a run cannot be resumed from it: optimisers, replay buffer and
random number state are saved in SB3's zip (``model.save``) and in the checkpoints of ``python -m sb3_mpc.zoo train``.
The format is described in :mod:`sb3_mpc.agents.agent_format`.
"""

import inspect
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import LinearSchedule, get_device
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch.overrides import TorchFunctionMode

import sb3_mpc
from sb3_mpc.agents.agent_format import read_agent, write_agent
from sb3_mpc.agents.agent_format import read_card as read_card
from sb3_mpc.agents.data_files import policy_classes
from sb3_mpc.agents.normalization import normalization_settings, normalization_tensors, wrap_normalized
from sb3_mpc.agents.provenance import git_commit, package_versions
from sb3_mpc.agents.space_json import space_from_json, space_to_json
from sb3_mpc.agents.training_files import check_finite_parameters
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.checks.arguments import check_range
from sb3_mpc.common.discount import env_attribute
from sb3_mpc.common.networks.encoders import NormalizingExtractor
from sb3_mpc.common.persistence import global_randomness_kept

# Arguments that belong to the machine or to the training run, not to the agent
NOT_KEPT = {"policy", "env", "expert", "action_noise", "replay_buffer_class", "replay_buffer_kwargs", "device"}
NOT_KEPT |= {"stats_window_size", "tensorboard_log", "verbose", "preset", "_init_setup_model"}
NEWER_STATE = ("_pretrained",)  # kept, too, but not in files of earlier versions
# Functions of PyTorch that allocate
MAKING = {
    th.empty,
    th.zeros,
    th.ones,
    th.full,
    th.rand,
    th.randn,
    th.randint,
    th.arange,
    th.linspace,
    th.eye,
    th.tensor,
}
MAKING |= {th.empty_like, th.zeros_like, th.ones_like, th.Tensor.clone, th.Tensor.repeat, th.Tensor.new_zeros}
STATISTICS = "vec_normalize/"  # prefix of the tensors that do not belong to the policy


def save_agent(model: WorldModelAlgorithm, path: str | Path, dtype: str = "float32", **card: Any) -> Path:
    """
    Write an agent to one file. An existing file of that name is replaced only when the new one is complete. A learning
    rate that changes linearly does so again when the loaded agent learns; of any other schedule it has the first value.

    :param model: the agent; its class and its policy's class must be of this package
    :param path: file to write, ``.safetensors`` is appended if it has no suffix
    :param dtype: "float32", or "float16" for a file of half the size whose actions differ slightly
    :param card: further entries of the card as plain JSON, such as ``preset``, ``evaluation`` or ``steps``; and
        ``environment``, an id, if the agent has no environment with a ``spec``
    :return: path of the file
    :raises ValueError: if a part of the agent cannot be stored as plain data
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f'dtype={dtype!r} is unknown: use "float32" or "float16".')
    env, normalization = model.get_env(), model.get_vec_normalize_env()
    environment = card.pop("environment", None)
    known: dict[str, Any] = dict(
        environment=_environment(env, environment), preset=None, seed=model.seed, evaluation=None, commit=git_commit()
    )
    never_acted = model._pretrained and model._last_obs is None and model._episode_num == 0
    first, middle, last = (float(model.lr_schedule(remaining)) for remaining in (1.0, 0.5, 0.0))
    if first != last and math.isclose(middle, (first + last) / 2):
        known["final_learning_rate"] = last
    content = {
        **known,
        # Updates by recorded data are counted, too, but are no decisions
        "steps": None if never_acted else dict(decisions=model.num_timesteps),
        **card,
        "dtype": dtype,
        "versions": package_versions(),
        **_description(model),
        "vec_normalize": None if normalization is None else normalization_settings(normalization),
    }
    exact = {  # differences of similar numbers: a rounded mean would shift all observations
        f"{name}.{statistic}"
        for name, module in model.policy.named_modules()
        if isinstance(module, NormalizingExtractor)
        for statistic in ("mean", "std", "smallest_std")
    }
    tensors = {
        name: _stored(value, "float32" if name in exact else dtype)
        for name, value in model.get_parameters()["policy"].items()
    }
    if normalization is not None:
        tensors |= {STATISTICS + name: value for name, value in normalization_tensors(normalization).items()}
    content = {name: json.loads(_to_json(value, f"The card's {name}")) for name, value in content.items()}
    return write_agent(path, content, tensors)


def load_agent(path: str | Path, env: GymEnv | None = None, device: th.device | str = "auto") -> WorldModelAlgorithm:
    """
    Load an agent. Nothing in the file is executed, even if it comes from an untrusted source.

    For an agent that was trained with ``VecNormalize``, pass the environment without that wrapper: it is wrapped here
    with the statistics of the file, and ``model.get_env()`` is the environment to act in. To continue training, set
    ``training``, and ``norm_reward`` if rewards were normalised, of that wrapper to True.

    :param path: file written by :func:`save_agent`
    :param env: environment to act or train in; may be None
    :param device: device of the agent
    :return: the agent
    :raises ValueError: if the file is damaged or not an agent file, or if the environment does not match the agent
    """
    card, tensors = read_agent(path)
    algorithm, device = sb3_mpc.ALGORITHMS[card["algorithm"]], get_device(device)
    venv = None if env is None else algorithm._wrap_env(env)
    names = [name for name in tensors if name.startswith(STATISTICS)]
    statistics = {name.removeprefix(STATISTICS): tensors.pop(name) for name in names}
    with _described(path, algorithm):
        settings = card["vec_normalize"]
        normalized = settings is not None and bool(settings["norm_obs"])
        with global_randomness_kept(), Budget(tensors.values()):
            model = _build(algorithm, card, 1 if venv is None else venv.num_envs, device)
        check_finite_parameters(tensors)
        model.policy.load_state_dict(tensors)
        model.policy.set_training_mode(False)
    already_wrapped = venv is not None and settings is not None and unwrap_vec_normalize(venv) is not None
    if already_wrapped or (venv is None and normalized):
        raise ValueError(
            f"{path} was trained under VecNormalize: give load_agent the environment without VecNormalize, "
            "which it wraps with the statistics of the file, and act in model.get_env()."
        )
    if venv is not None:
        try:
            model.set_env(venv if settings is None else wrap_normalized(venv, settings, statistics))
        except Exception as error:  # whatever unchecked settings cause
            raise ValueError(f"{path} was trained in another environment than the one given: {error}.") from error
    return model


def build_agent(
    algorithm: type[WorldModelAlgorithm],
    policy: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    n_envs: int = 1,
    state: dict[str, Any] | None = None,
    **arguments: Any,
) -> WorldModelAlgorithm:
    """
    Build an agent that has no environment.

    :param algorithm: class of the agent
    :param policy: alias of its policy, such as "MlpPolicy"
    :param observation_space: space of its observations
    :param action_space: space of its actions
    :param n_envs: number of environments that it will be used with
    :param state: attributes to set before the networks are built
    :param arguments: arguments of the constructor
    :return: the agent, with newly initialised networks
    """
    model = algorithm(policy, None, _init_setup_model=False, **arguments)
    model.observation_space, model.action_space, model.n_envs = observation_space, action_space, n_envs
    for name, value in (state or {}).items():
        setattr(model, name, value)
    model._setup_model()
    return model


class Budget(TorchFunctionMode):
    """
    Context in which not many more numbers and tensors are made than a file holds: the card of a small file may describe
    a large agent.

    :param tensors: content of the file
    """

    def __init__(self, tensors: Iterable[th.Tensor]) -> None:
        super().__init__()
        sizes = [value.numel() for value in tensors]
        # Networks are made with their targets, and initialised from drawn numbers
        self.numbers, self.calls = 4 * sum(sizes) + 1_000_000, 100 * len(sizes) + 10_000

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what is made, see PyTorch."""
        result = func(*args, **(kwargs or {}))
        self.calls -= 1
        if func in MAKING and isinstance(result, th.Tensor):
            self.numbers -= result.numel()
        if self.numbers < 0 or self.calls < 0:
            raise ValueError("it describes larger networks than it holds")
        return result


# -- Writing -----------------------------------------------------------------------------------------------------------


def _description(model: WorldModelAlgorithm) -> dict[str, Any]:
    """:return: all that is needed to rebuild the agent, except its tensors"""
    cls = type(model)
    keys = {known: key for key, known in sb3_mpc.ALGORITHMS.items()}
    aliases = {known: alias for alias, known in cls.policy_aliases.items()}
    for own, known in ((cls, keys), (model.policy_class, aliases)):
        if own not in known:
            raise ValueError(
                f"{own.__name__} is not a class of sb3_mpc, and a file that holds data only cannot re-create it: use "
                f"model.save(), which is SB3's format."
            )
    arguments: dict[str, Any] = {name: getattr(model, name) for name in _argument_names(cls)}
    # Of a schedule, the initial value; the card has the final one, too, if the schedule is linear
    arguments["learning_rate"] = float(model.lr_schedule(1.0))
    arguments["train_freq"] = [model.train_freq.frequency, model.train_freq.unit.value]  # type: ignore[union-attr]
    if model.compile is True:  # the machine that loads the agent may have no compiler
        arguments["compile"] = "auto"
    classes = {known: name for name, known in _classes().items()}
    arguments["policy_kwargs"] = {
        name: {"class": classes[value]} if isinstance(value, type) and value in classes else value
        for name, value in model.policy_kwargs.items()
    }
    for name, value in {**arguments, **arguments["policy_kwargs"]}.items():
        _to_json(value, f"{cls.__name__}'s argument {name}")
    return dict(
        algorithm=keys[cls],
        policy=aliases[model.policy_class],
        arguments=arguments,
        state={name: getattr(model, name) for name in (*cls.kept_in_agent_files, *NEWER_STATE)},
        observation_space=space_to_json(model.observation_space),
        action_space=space_to_json(model.action_space),
    )


def _argument_names(algorithm: type[WorldModelAlgorithm]) -> list[str]:
    parameters = inspect.signature(algorithm).parameters.values()
    return [p.name for p in parameters if p.name not in NOT_KEPT and p.kind is not p.VAR_KEYWORD]


def _classes() -> dict[str, type]:
    """:return: the classes that may appear in ``policy_kwargs``, by name"""
    return {value.__name__: value for value in policy_classes()}


def _to_json(value: Any, name: str) -> str:
    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        raise TypeError

    try:
        return json.dumps(value, default=plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is {value!r}, and only plain numbers, text, lists and dicts can be stored in a file that holds "
            "data only: leave it out, or use model.save(), which is SB3's format."
        ) from error


def _environment(env: VecEnv | None, env_id: str | None) -> dict[str, Any] | None:
    if env_id is not None:
        return dict(id=env_id, max_episode_steps=None, kwargs={})
    spec = env_attribute(env, "spec")
    if spec is None:
        return None
    # For people who read the card: no environment is made from it
    kwargs = json.loads(json.dumps({k: v for k, v in spec.kwargs.items() if k != "render_mode"}, default=repr))
    return dict(id=spec.id, max_episode_steps=spec.max_episode_steps, kwargs=kwargs)


def _stored(value: th.Tensor, dtype: str) -> th.Tensor:
    value = value.detach().cpu().clone(memory_format=th.contiguous_format)
    half = value.half() if dtype == "float16" and value.is_floating_point() else value
    return half if half.isfinite().all() else value  # the largest number in half precision is 65,504


# -- Reading -----------------------------------------------------------------------------------------------------------


@contextmanager
def _described(path: str | Path, algorithm: type[WorldModelAlgorithm]) -> Iterator[None]:
    """Turn any error that an unchecked card causes in the constructors into one clear sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} does not describe a {algorithm.__name__} that can be built ({reason}).") from error


def _build(
    algorithm: type[WorldModelAlgorithm], card: dict[str, Any], n_envs: int, device: th.device
) -> WorldModelAlgorithm:
    """
    :param algorithm: class of the agent
    :param card: its card
    :param n_envs: number of environments
    :param device: device
    :return: the agent, with newly initialised networks
    """
    arguments, classes = card["arguments"], _classes()
    foreign = arguments.keys() - set(_argument_names(algorithm))
    if foreign:
        raise ValueError(f"unknown arguments {sorted(foreign)}")
    policy_kwargs = {
        name: classes[value["class"]] if isinstance(value, dict) and value.keys() == {"class"} else value
        for name, value in arguments["policy_kwargs"].items()
    }
    arguments = {**arguments, "policy_kwargs": policy_kwargs, "train_freq": tuple(arguments["train_freq"])}
    if card.get("final_learning_rate") is not None:
        check_range("The final learning_rate", card["final_learning_rate"], *algorithm.ranges["learning_rate"])
        arguments["learning_rate"] = LinearSchedule(arguments["learning_rate"], card["final_learning_rate"], 1.0)
    if arguments.get("compile") is not False:  # no file starts a compiler here
        arguments["compile"] = "auto"
    if card["policy"] not in algorithm.policy_aliases:
        raise ValueError(f"unknown policy {card['policy']!r}")
    observation_space, action_space = (space_from_json(card[f"{kind}_space"]) for kind in ("observation", "action"))
    newer = [name for name in NEWER_STATE if name in card["state"]]
    state = {name: card["state"][name] for name in (*algorithm.kept_in_agent_files, *newer)}
    if not all(value is None or isinstance(value, int) for value in state.values()):
        raise ValueError(f"invalid state {state}")
    return build_agent(
        algorithm, card["policy"], observation_space, action_space, n_envs, state, device=device, **arguments
    )
