"""What users set: arguments, spaces, classes."""

import difflib
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env


class UnsupportedObservationError(AssertionError, ValueError):
    """The observation space does not suit the policy. SB3 raises AssertionError for it, Python ValueError."""


class UnsupportedActionSpaceError(AssertionError, ValueError):
    """The action space does not suit the method. SB3 raises AssertionError for it, Python ValueError."""


def make_env(env: GymEnv | str | None, verbose: int) -> GymEnv | None:
    """
    :param env: environment, its id, or None
    :param verbose: whether to print that an environment is made from its id
    :return: the environment; one of old Gym is adapted by Shimmy, as SB3 does it
    :raises ValueError: if it is none
    """
    made = None if env is None else maybe_make_env(env, verbose)
    if made is None or isinstance(made, VecEnv):
        return made
    try:
        return _patch_env(made)
    except ValueError as error:
        kind, fix = f"an object of type {type(made).__name__}", "give a gymnasium.Env, its id, or a VecEnv of SB3"
        if isinstance(made, (list, tuple)):
            kind, fix = (
                f"a {type(made).__name__}",
                "give a VecEnv, such as DummyVecEnv([make, make]) or make_vec_env(id, 2)",
            )
        elif callable(made):
            kind = f"the {'class' if isinstance(made, type) else 'function'} {getattr(made, '__name__', made)}"
            fix = "call it and give the environment, or use make_vec_env for several"
        raise ValueError(f"env is {kind}, not an environment: {fix}.") from error


def check_action_space(space: spaces.Space, method: str) -> None:
    """
    :param space: action space of the environment
    :param method: name of the method, for the message
    :raises UnsupportedActionSpaceError: unless it is a bounded box
    """
    if not isinstance(space, spaces.Box):
        raise UnsupportedActionSpaceError(
            f"{method} plans over continuous actions and cannot use the action space {space}: use an environment with "
            "a gymnasium.spaces.Box action space, or a method for discrete actions such as DQN or PPO."
        )
    if 0 in space.shape:
        raise UnsupportedActionSpaceError(
            f"{method} needs at least one action, and the action space {space} has none: use another environment."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UnsupportedActionSpaceError(
            f"{method} needs an action space with a finite lower and upper bound in every dimension, got {space}: wrap "
            "the environment in gymnasium.wrappers.RescaleAction or give its action space bounds."
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise UnsupportedActionSpaceError(
            f"{method} plans over floating-point actions and cannot use the action space {space}: wrap the environment "
            "in gymnasium.wrappers.TransformAction, with a Box of np.float32 and a function that rounds."
        )
    if not (space.low < space.high).all():
        raise UnsupportedActionSpaceError(
            f"{method} needs low < high in every dimension of the action space, got low={space.low}, high={space.high}"
            ": leave out the dimensions that cannot vary."
        )


# Arguments of SB3's SAC and TD3, and of their policies, that have no counterpart here
FOREIGN_ARGUMENTS = {
    **dict.fromkeys(
        ("ent_coef", "target_entropy"),
        "leave it out; the weight of the entropy is entropy_coef, on another scale than SAC's (1e-4 by default, for "
        "values scaled to 1), so that a number that suits SAC does not suit it",
    ),
    "target_update_interval": "the target networks are updated with tau in every update, leave it out",
    **dict.fromkeys(
        ("use_sde", "sde_sample_freq", "use_sde_at_warmup", "log_std_init", "use_expln", "clip_mean"),
        "the planner explores by itself, leave it out",
    ),
    **dict.fromkeys(
        ("policy_delay", "target_policy_noise", "target_noise_clip"), "it belongs to TD3's policy update, leave it out"
    ),
    "lr": "use learning_rate, an argument of the agent",
    "share_features_extractor": "one encoder serves all networks, leave it out",
    "activation_fn": "the activations belong to the method (Mish, SimNorm), leave it out",
}


MAX_NUMBER = float(np.finfo(np.float32).max)  # larger numbers are infinite in single precision
# What users call the types of annotations
NAMES = dict(Sequence="a list", list="a list", tuple="a list", Callable="a function", dict="a dict", str="a text")
MAX_LISTED = 12  # largest number of names listed in a message


# Default values of SAC are accepted and have no effect
WITHOUT_EFFECT: dict[str, Any] = dict(
    ent_coef="auto",
    target_entropy="auto",
    target_update_interval=1,
    use_sde=False,
    sde_sample_freq=-1,
    use_sde_at_warmup=False,
)
# Likewise those of SAC's policy, in policy_kwargs
WITHOUT_EFFECT_IN_POLICY: dict[str, Any] = dict(
    share_features_extractor=False, use_sde=False, log_std_init=-3, use_expln=False, clip_mean=2.0
)


LOW_RATE = 0.1  # share of the highest learning rate below which little is learned


def warn_of_low_rate(schedule: Schedule, done: float) -> None:
    """
    :param schedule: learning rate
    :param done: share of all steps that are done; there is a warning if the rate is low from there on
    """
    highest, present = max(float(schedule(left / 10)) for left in range(11)), float(schedule(1.0 - done))
    if present < LOW_RATE * highest and done > 0:
        warnings.warn(
            f"The learning rate begins at {present:.1e}, where the highest of the run is {highest:.1e}, because it is "
            "one over all steps, those of earlier calls of learn() included: to learn more, load the agent with a new "
            f"one, such as learning_rate={highest / 3:.1g}.",
            stacklevel=7,
        )


class Absent:
    """
    Attribute of SAC that has no counterpart: reading it raises AttributeError, with advice.

    :param advice: what to use instead
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        """:raises AttributeError: if asked by an object"""
        if instance is None:
            return self
        raise AttributeError(f"{owner.__name__} has no attribute {self.name!r}: {self.advice}.")


def known_arguments(cls: type) -> list[str]:
    """
    :param cls: class
    :return: names of the arguments of its constructor, including those that are passed on to base classes
    """
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            if not any(p.kind is p.VAR_KEYWORD and p.name != "unknown" for p in parameters):
                break  # nothing is passed on; ``unknown`` only collects arguments to reject
    return [name for name in dict.fromkeys(names) if name != "self"]


def explain_unknown(name: str, known: list[str]) -> str:
    """
    :param name: unknown argument
    :param known: valid arguments
    :return: the fix, for the message
    """
    close = difflib.get_close_matches(name, known, n=1)
    listed = f"use {', '.join(known)}." if len(known) <= MAX_LISTED else "see help() of the class for valid arguments."
    return FOREIGN_ARGUMENTS.get(name) or (f"did you mean {close[0]!r}?" if close else listed)


def explain_elsewhere(name: str, method: Any, family: type) -> str | None:
    """
    :param name: unknown argument
    :param method: class of the agent
    :param family: base class of all methods
    :return: where it belongs, for the message: the policy of the agent, or other methods of the package
    """
    if name in FOREIGN_ARGUMENTS:
        return None
    if name in known_arguments(method.policy_aliases["MlpPolicy"]):
        return f"it belongs into the policy, use policy_kwargs=dict({name}=...)."
    others = [cls for cls in derived_classes(family) if cls.__module__.startswith("sb3_mpc.")]
    names = sorted({cls.__name__ for cls in others if name in known_arguments(cls)})
    return f"it is one of {' and '.join(names)}, leave it out." if names else None


def derived_classes(cls: type) -> list[type]:
    """:return: all classes that are derived from a class"""
    direct: list[type] = cls.__subclasses__()
    return [found for derived in direct for found in (derived, *derived_classes(derived))]


def check_no_unknown_arguments(method: type, unknown: dict[str, Any], family: type) -> None:
    """
    :param method: class of the agent
    :param unknown: arguments that its constructor does not have
    :param family: base class of all methods, which may have them
    :raises TypeError: if there are any, apart from default values of SAC
    """
    for name, value in unknown.items():
        if name in WITHOUT_EFFECT and value == WITHOUT_EFFECT[name]:
            continue
        fix = explain_elsewhere(name, method, family) or explain_unknown(name, known_arguments(method))
        raise TypeError(f"{method.__name__} has no argument {name!r}: {fix}")


def warn_of_changes(made: dict[str, Any], now: dict[str, Any]) -> None:
    """
    :param made: arguments that the planner was made with
    :param now: the same arguments according to the agent's present attributes; each difference causes a warning
    """
    for name, value in now.items():
        if value != made.get(name):
            warnings.warn(
                f"{name} was changed to {value!r} on the agent, but its planner keeps {made.get(name)!r}: to change "
                f"it, save the agent and load it with {name}={value!r}.",
                stacklevel=4,
            )


def check_range(name: str, value: object, least: float, most: float = np.inf) -> None:
    """
    :param name: name of the argument, for the message
    :param value: its value; "auto" is not checked
    :param least: smallest allowed value
    :param most: largest allowed value
    :raises ValueError: if it is not a number in that range
    """
    if isinstance(value, str) and value == "auto":
        return
    numbers = (int, float, np.number)
    if isinstance(value, np.complexfloating) or not isinstance(value, numbers) or not least <= value <= most:
        allowed = f"from {least:g} to {most:g}" if most < MAX_NUMBER else f"of at least {least:g}"
        raise ValueError(f"{name}={value!r:.80} is out of range: use a number {allowed}.")


@functools.cache
def annotations(cls: type) -> dict[str, set[Any]]:
    """
    :param cls: class
    :return: types that each argument of its constructor may have; those of base classes, if it passes arguments on
    """
    found: dict[str, set[Any]] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            for name, parameter in inspect.signature(base.__init__).parameters.items():  # type: ignore[misc]
                if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
                    found.setdefault(name, _alternatives(parameter.annotation))
    return {name: found[name] for name in known_arguments(cls) if name in found}


def _alternatives(hint: Any) -> set[Any]:
    """:return: types of a union, or the one type"""
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}


def check_arguments(
    cls: type,
    values: Mapping[str, Any],
    ranges: Mapping[str, tuple[float, ...]],
    relations: Iterable[tuple[str, str]] = (),
    choices: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """
    Check arguments against one table: their types are those of the constructor, numbers are finite, and not negative
    unless their range says otherwise.

    :param cls: class whose constructor takes the arguments
    :param values: arguments by name
    :param ranges: smallest and, if any, largest allowed value of numbers, by name
    :param relations: pairs of arguments, of which the first must not be larger than the second
    :param choices: what arguments may be that are one of a few names
    :raises ValueError: if one is of another type, out of range or none of these names
    """
    for name, known in (choices or {}).items():
        if values[name] not in known:
            listed = f"one of {known}" if len(known) > 2 else " or ".join(f'"{choice}"' for choice in known)
            raise ValueError(f"{name}={values[name]!r:.80} is unknown: use {listed}.")
    for name, kinds in annotations(cls).items():
        if name in values:
            check_argument(name, values[name], kinds, ranges.get(name, (0,)))
    for smaller, larger in relations:
        low, high = values.get(smaller), values.get(larger)
        if all(isinstance(value, (int, float, np.number)) for value in (low, high)) and low > high:  # type: ignore[operator]
            raise ValueError(
                f"{smaller}={low!r} is larger than {larger}={high!r}: reduce it, or give a larger {larger}."
            )


def check_argument(name: str, value: Any, kinds: set[Any], limits: tuple[float, ...]) -> None:
    """
    :param name: name of the argument, for the message
    :param value: its value
    :param kinds: types that it may have; only plain ones are checked here
    :param limits: smallest and, if any, largest allowed value of a number
    :raises ValueError: if it is of another type, not finite, or out of range
    """
    plain = kinds & {bool, int, float, str, type(None)}
    others = kinds - plain
    if (value is None and type(None) in plain) or any(_is_of(value, kind) for kind in others):
        return
    if isinstance(value, (str, os.PathLike)) and str in plain and (plain <= {str, type(None)} or value == "auto"):
        return
    if isinstance(value, str) and {int, float} & plain and not others and str not in plain:
        raise ValueError(f"{name}={value!r:.80} is out of range: use a {'' if float in plain else 'whole '}number.")
    if {int, float} & plain and (not others or isinstance(value, (bool, int, float, np.generic))):
        whole = float not in plain
        flag = isinstance(value, (bool, np.bool_)) and name != "verbose"
        if flag or (whole and not isinstance(value, (int, np.integer))):
            auto = ', or "auto"' if str in plain else ""
            raise ValueError(f"{name}={value!r:.80} is out of range: use a {'whole ' if whole else ''}number{auto}.")
        check_range(name, value, limits[0], min([*limits[1:], MAX_NUMBER]))
    elif bool in plain:
        check_flag(name, value, str in plain)
    else:
        names = {getattr(kind, "__name__", str(kind)) for kind in kinds - {type(None)}}
        named = sorted({NAMES.get(kind, kind) for kind in names})
        raise ValueError(f"{name}={value!r:.80} is not understood: use {' or '.join(named)}.")


def _is_of(value: Any, kind: Any) -> bool:
    """:return: whether a value is of a type that an annotation names, as far as that can be seen"""
    origin = get_origin(kind) or kind
    if origin in (tuple, list, Sequence):
        return isinstance(value, Sequence) and not isinstance(value, str)
    if origin is Callable:
        return callable(value)
    return isinstance(value, origin) if isinstance(origin, type) else True


def check_flag(name: str, value: Any, auto: bool = False) -> None:
    """
    :param name: name of the argument, for the message
    :param value: its value
    :param auto: whether "auto" is allowed, too
    :raises ValueError: if it is neither True nor False
    """
    if not isinstance(value, (bool, np.bool_)) and not (auto and isinstance(value, str) and value == "auto"):
        allowed = 'True, False or "auto"' if auto else "True or False"
        raise ValueError(f"{name}={value!r:.80} is not understood: use {allowed}.")


def check_train_freq(value: Any) -> None:
    """
    :param value: the argument ``train_freq``
    :raises ValueError: unless it is a positive number of steps, or a pair of that and a unit
    """
    frequency, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    unit = getattr(unit, "value", unit)  # of SB3's TrainFreq
    whole = isinstance(frequency, (int, np.integer)) and not isinstance(frequency, bool)
    if not whole or frequency < 1 or unit not in ("step", "episode"):
        raise ValueError(
            f'train_freq={value!r:.80} is out of range: use a whole number of at least 1, or (number, "step") or '
            '(number, "episode").'
        )


def check_observation_space(space: spaces.Space, method: str) -> None:
    """
    :param space: observation space of the environment
    :param method: name of the method, for the message
    :raises UnsupportedObservationError: if there is nothing in it; an empty part of a dict is named by the encoder
    """
    empty = not space.spaces if isinstance(space, spaces.Dict) else 0 in (space.shape or ())
    if empty:
        raise UnsupportedObservationError(
            f"{method} needs observations, and the observation space {space} has none: use an environment that returns "
            "at least one number."
        )


def check_policy_class(policy_class: type, base: type, method: str) -> None:
    """
    :param policy_class: class of the policy that the user gave, or that a file names
    :param base: class that it must be derived from
    :param method: name of the method, for the message
    :raises ValueError: if it is not derived from that class
    """
    if not issubclass(policy_class, base):
        raise ValueError(
            f"{method} needs a policy derived from {base.__name__}, got {policy_class.__name__}: use 'MlpPolicy', "
            "'CnnPolicy' or 'MultiInputPolicy'; a file saved by another algorithm must be loaded by that algorithm."
        )


def without_defaults_of_sac(policy_class: type, keywords: dict[str, Any]) -> dict[str, Any]:
    """
    :param policy_class: class of the policy
    :param keywords: the user's ``policy_kwargs``
    :return: those but default values of SAC's policy that this policy has no argument for
    """
    known, none = known_arguments(policy_class), object()
    ignored = WITHOUT_EFFECT_IN_POLICY
    return {key: value for key, value in keywords.items() if key in known or value != ignored.get(key, none)}


def check_keywords(argument: str, target: type, keywords: dict[str, Any], given: Iterable[str]) -> None:
    """
    :param argument: name of the dict, such as "policy_kwargs", for the message
    :param target: class that takes the keywords
    :param keywords: the user's keywords
    :param given: arguments of the class that the user may not set
    :raises TypeError: if a keyword is not a valid argument of the class
    """
    known = [name for name in known_arguments(target) if name not in given]
    for key in keywords:
        if key not in known:
            raise TypeError(
                f"{argument} has the unknown key {key!r} for {target.__name__}: {explain_unknown(key, known)}"
            )
