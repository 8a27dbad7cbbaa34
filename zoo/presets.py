"""
Presets: the hyper-parameters of each method for each environment, ``presets/<algo>.yml``, and the reduced ones of its
class, which override them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sb3_mpc
from sb3_mpc.common.presets import find_preset, schedule

PRESETS = Path(__file__).parent / "presets"


def preset_file(algo: str) -> Path:
    """
    :param algo: key of a method, such as ``"tdmpc2"``
    :return: its presets
    """
    return PRESETS / f"{algo}.yml"


def preset_key(entries: Mapping[str, Any], env_id: str) -> str:
    """
    :param entries: content of a file of presets
    :param env_id: id of an environment
    :return: name of the entry to use: the id, its suite (for pixels ``<suite>-pixels``), "gymnasium" or "default"
    """
    env_id = env_id.rpartition(":")[2]
    suite = env_id.partition("/")[0] if "/" in env_id else "gymnasium" if _of_gymnasium(env_id) else ""
    names = [env_id, *([f"{suite}-pixels"] if "-pixels-" in env_id else []), suite]
    return next((name for name in names if name in entries), "default")


def _of_gymnasium(env_id: str) -> bool:
    import gymnasium as gym

    return env_id in gym.registry and str(gym.registry[env_id].entry_point).startswith("gymnasium.envs")


def reduced(algo: str, entries: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """
    :param algo: key of a method
    :param entries: content of a file of presets, which may be the user's, with further presets
    :param name: value of ``--preset``, None if it is not given
    :return: settings that override those of the environment
    :raises ValueError: if there is no such preset
    """
    if name is None:
        return {}
    return dict(entries[name]) if name in entries else find_preset(sb3_mpc.ALGORITHMS[algo].presets, name)


def load_preset(algo: str, env_id: str, preset: str | None = None) -> dict[str, Any]:
    """
    :param algo: key of a method
    :param env_id: id of an environment
    :param preset: name of a reduced preset, such as ``"cpu"``
    :return: arguments of the class, and ``policy``, ``n_timesteps``, ``n_envs`` and so on of rl_zoo3
    """
    import yaml

    entries = yaml.safe_load(preset_file(algo).read_text())
    settings = {**entries[preset_key(entries, env_id)], **reduced(algo, entries, preset)}
    return {name: schedule(value) if name == "learning_rate" else value for name, value in settings.items()}
