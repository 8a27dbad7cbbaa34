"""Videos of trained agents, also on machines without a display."""

import warnings
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize


def record_video(
    model: PolicyPredictor,
    env_id: str,
    folder: str | Path,
    episodes: int = 1,
    seed: int | None = None,
    deterministic: bool = True,
    name: str | None = None,
    normalization: str | Path | None = None,
    **env_kwargs: Any,
) -> list[Path]:
    """
    Record videos of whole episodes of an agent, through the default camera of the environment::

        model = TDMPC2.load("walker")
        record_video(model, "dmc/walker-walk-v0", "videos")

    :param model: any agent or policy of Stable-Baselines3, planning and recurrent ones included
    :param env_id: id of the environment as for ``gym.make``
    :param folder: folder of the files; it is created, and files of the same name are replaced
    :param episodes: number of episodes; each has its own file
    :param seed: determines the episodes; without it they are drawn at random
    :param deterministic: whether the agent acts deterministically
    :param name: prefix of the files' names; None for the id with ``-`` in place of ``/``
    :param normalization: file written by ``VecNormalize.save()``, for agents that were trained with ``VecNormalize``
    :param env_kwargs: passed on to ``gym.make``, for instance ``width``, ``height`` or ``camera`` of DMControl
    :return: the files ``<folder>/<name>-episode-<number>.mp4``
    :raises ValueError: if ``episodes`` is less than 1
    :raises gymnasium.error.DependencyNotInstalled: without moviepy
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, but is {episodes}.")
    if find_spec("moviepy") is None:
        raise gym.error.DependencyNotInstalled(
            'Videos need moviepy: pip install -e ".[extra]" in your clone of sb3-mpc'
        )
    folder = Path(folder)
    name = name or env_id.rpartition(":")[2].replace("/", "-")
    env = gym.make(env_id, render_mode="rgb_array", **env_kwargs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Overwriting existing videos")  # raised for every existing folder
        # evaluate_policy begins one more episode, which is not recorded.
        recorder: gym.Env = gym.wrappers.RecordVideo(
            env, str(folder), episode_trigger=lambda episode: episode < episodes, name_prefix=name
        )
    with closing(DummyVecEnv([lambda: recorder])) as single:
        env_of_agent: VecEnv = single
        if normalization is not None:
            env_of_agent = normalize = VecNormalize.load(str(normalization), single)
            normalize.training = normalize.norm_reward = False
        env_of_agent.seed(seed)
        evaluate_policy(model, env_of_agent, n_eval_episodes=episodes, deterministic=deterministic, warn=False)
    return [folder / f"{name}-episode-{episode}.mp4" for episode in range(episodes)]
