"""
Presets: many settings by one name. The constructors take it (``TDMPC2("MlpPolicy", env, preset="small")``), and so does
the command line of the zoo, which keeps the settings of single environments besides.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, ParamSpec

from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_mpc.common.networks.sizes import MODEL_SIZES

P = ParamSpec("P")

# In rl_zoo3's format, which has keys of the run beside the arguments: OF_THE_RUN
PRESETS: dict[str, dict[str, Any]] = {
    # For two CPU cores; weaker than the paper's on hard tasks
    "cpu": dict(policy_kwargs=dict(model_size=1), num_samples=256, num_elites=32, iterations=4),
    # For one CPU core, 20 minutes for 100,000 frames of DMControl: ten environments, small batches and plans
    "small": dict(
        n_envs=10,
        n_timesteps=50_000,
        learning_rate="lin_0.001",  # falls to zero: steadier last agents
        batch_size=64,
        learning_starts=1_000,
        pretrain_gradient_steps=1_000,
        gradient_steps=10,
        policy_kwargs=dict(latent_dim=64, enc_dim=128, net_arch=[128, 128], num_q=2),
        num_samples=64,
        num_elites=12,
        num_pi_trajs=12,
        iterations=3,
    ),
    # What TD-MPC2 changes to learn many tasks from data alone; its agents of 80 tasks have model_size 19 and more
    "offline": dict(batch_size=1024),
}
OF_THE_RUN = ("policy", "n_envs", "n_timesteps")
# Of policy_kwargs: model_size stands for all sizes, and of each pair one name stands for the other
SIZES = {"net_arch", *MODEL_SIZES[5]}
PAIRS = ({"net_arch", "mlp_dim"}, {"n_critics", "num_q"})


def find_preset(presets: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """
    :param presets: presets by name
    :param name: one of the names
    :return: a copy of its settings
    :raises ValueError: if there is no such preset
    """
    if not isinstance(name, str) or name not in presets:
        known = " or ".join(f'"{preset}"' for preset in presets)
        raise ValueError(f'There is no preset "{name}" of this method: use {known}.')
    return copy.deepcopy(presets[name])


def schedule(rate: Any) -> Any:
    """
    :param rate: learning rate; in rl_zoo3's format ``lin_0.001`` is one that falls linearly to zero
    :return: argument of the class
    """
    text = str(rate)
    return LinearSchedule(float(text.removeprefix("lin_")), 0.0, 1.0) if text.startswith("lin_") else rate


def complete(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param settings: a preset
    :param given: arguments that the user gives, which win; ``policy_kwargs`` are merged key by key
    :return: arguments that the preset adds, and ``policy_kwargs``. Updates per decision are those of the preset, for
        the number of environments that there are
    """
    added = {name: value for name, value in settings.items() if name not in (*given, *OF_THE_RUN)}
    if "n_steps" in added and isinstance(given.get("horizon"), int):
        added["n_steps"] = max(1, min(added["n_steps"], given["horizon"]))
    if "learning_rate" in added:
        added["learning_rate"] = schedule(added["learning_rate"])
    if "n_envs" in settings and "gradient_steps" in settings:
        added.pop("gradient_steps", None)
        if not {"gradient_steps", "train_freq"} & given.keys():
            env = given.get("env")
            updates = Fraction(settings["gradient_steps"], settings["n_envs"])
            updates *= env.num_envs if isinstance(env, VecEnv) else 1
            added |= dict(gradient_steps=updates.numerator, train_freq=updates.denominator)
    own = given.get("policy_kwargs") or {}
    return {**added, "policy_kwargs": merged(settings.get("policy_kwargs", {}), own)}


def merged(sizes: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param sizes: ``policy_kwargs`` of a preset
    :param own: those that the user gives, which win; other names of the same sizes are left out of the preset's
    :return: both together
    """
    covered = set(SIZES) if "model_size" in own else set()
    covered = covered.union(*(pair for pair in PAIRS if pair & own.keys()))
    if "planner_class" in own:
        covered.add("planner_kwargs")  # another planner has other arguments
    left = {name: value for name, value in sizes.items() if name not in covered}
    for name in {"planner_kwargs", "student_planner_kwargs"} & left.keys() & own.keys():
        if isinstance(own[name] or {}, dict):  # anything else is refused later
            own = {**own, name: {**(left[name] or {}), **(own[name] or {})}}
    return {**left, **own}


def takes_preset(constructor: Callable[P, None]) -> Callable[P, None]:
    """
    Decorator of a method's constructor, which alone can tell an argument that is given from one that is left out.

    :param constructor: constructor with an argument ``preset``
    :return: the constructor, which takes from the preset what is left out, see ``WorldModelAlgorithm.preset_arguments``
    """
    names = list(inspect.signature(constructor).parameters)

    @functools.wraps(constructor)
    def complete_and_construct(*args: P.args, **kwargs: P.kwargs) -> None:
        model: Any = args[0]
        name = kwargs.get("preset")
        if name is not None and "preset" not in vars(model):  # there is one when a method calls its base
            model.preset = name
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            del given[names[0]]
            kwargs.update(model.preset_arguments(name, given))
        constructor(*args, **kwargs)

    return complete_and_construct
