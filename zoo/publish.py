"""Command ``publish``: write a trained agent to one file to share, with its evaluation, curve, video and model card."""

import argparse
import itertools
import math
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

import sb3_mpc
from sb3_mpc.agents.agent_files import load_agent, read_card, save_agent
from sb3_mpc.envs.video import record_video
from sb3_mpc.zoo.agents import find as find_agent
from sb3_mpc.zoo.aggregate import curves
from sb3_mpc.zoo.card_facts import agent_name
from sb3_mpc.zoo.cards import card_text, pictures_of
from sb3_mpc.zoo.evaluate import Agent, check_plain, described, find, measure, statistics_of
from sb3_mpc.zoo.plot import draw
from sb3_mpc.zoo.returns import action_repeat, read_csv, read_run, with_published
from sb3_mpc.zoo.rl_zoo import find_environment
from sb3_mpc.zoo.run_folder import read_start, settings_file

# Of the animated picture on the card: seconds, pixels, frames per second. Small enough for a page
VIDEO_SECONDS, VIDEO_WIDTH, VIDEO_RATE = 8, 128, 10
VIDEO_COLORS = 64
OF_THE_TRAINING = ("commit", "steps", "seed", "preset", "command", "note")  # entries of a card


def publish(agent: Agent, args: argparse.Namespace, rows: pd.DataFrame | None = None, **card: Any) -> Path:
    """
    Write ``<method>-<environment>.safetensors``, its model card, its curve and its video. The agent is read back from
    the file before it is evaluated, by planning and by its network policy.

    :param agent: the agent
    :param args: command line of ``publish``
    :param rows: table of returns; those of this method and environment are drawn
    :param card: further entries of the card
    :return: the file
    """
    check_plain(agent)
    model, env = agent.start(1)
    steps = dict(decisions=model.num_timesteps) | card.pop("steps", {})
    steps = dict(frames=steps["decisions"] * action_repeat(agent.env_id, {**agent.env_kwargs})) | steps
    args.folder.mkdir(parents=True, exist_ok=True)
    algo = next(key for key, algorithm in sb3_mpc.ALGORITHMS.items() if type(model) is algorithm)
    path = args.folder / f"{agent_name(algo, agent.env_id)}.safetensors"
    card = dict(steps=steps, seed=model.seed) | card
    save_agent(model, path, args.dtype, **card)
    env.close()
    written = Agent(lambda env: load_agent(path, env, args.device), agent.env_id, agent.env_kwargs)
    model, env = written.start(min(args.episodes, 10))
    evaluation: dict[str, Any] = dict(episodes=args.episodes, seed=args.seed)
    for name, prefix, policy in (("planner", "", model), ("network policy", "network_", model.actor)):
        env.seed(args.seed)
        found = measure(policy, env, args.episodes)
        evaluation |= {f"{prefix}{key}_return": found[key] for key in ("mean", "std")}
        if "success" in found:
            evaluation[f"{prefix}success"] = found["success"]
        print(described(name, found), flush=True)
    save_agent(model, path, args.dtype, evaluation=evaluation, **card)
    if rows is not None:
        own = rows[(rows["task"] == agent.env_id) & (rows["method"].str.split(" ").str[0] == algo)]
        if len(own):
            draw(curves(with_published(own)), path.with_suffix(".png"), "return")
    write_card(path)
    if not args.no_film:  # last: without OpenGL all other files are there
        write_video(model, env, written, path.with_suffix(".gif"), args.seed)
        write_card(path)
    env.close()
    return path


def write_card(path: Path) -> None:
    """
    :param path: agent file; its model card is written beside it and shows the pictures that are there
    """
    path.with_suffix(".md").write_text(card_text(read_card(path), pictures_of(path)), encoding="utf-8")


def write_video(model: Any, env: Any, agent: Agent, target: Path, seed: int) -> None:
    """
    :param model: the agent
    :param env: environment that it was evaluated in
    :param agent: description of that environment
    :param target: ``.gif`` of the first seconds of an episode
    :param seed: seed of the episode
    """
    rate = env.get_attr("metadata")[0].get("render_fps", 30)
    length = min(round(VIDEO_SECONDS * rate), agent.env_kwargs.get("max_episode_steps", math.inf))
    brief = {**agent.env_kwargs, "max_episode_steps": length}
    with tempfile.TemporaryDirectory() as folder:
        statistics = statistics_of(env, Path(folder))
        (video,) = record_video(model, agent.env_id, folder, seed=seed, normalization=statistics, **brief)
        import imageio.v3 as iio  # moviepy, which has made the video, needs both
        from PIL import Image

        stride = max(1, round(rate / VIDEO_RATE))
        frames = []
        for frame in itertools.islice(iio.imiter(video, plugin="FFMPEG"), 0, None, stride):
            image = Image.fromarray(frame)
            small = image.resize((VIDEO_WIDTH, VIDEO_WIDTH * image.height // image.width))
            frames.append(small.quantize(VIDEO_COLORS))
        frames[0].save(target, save_all=True, append_images=frames[1:], duration=1_000 * stride / rate, loop=0)


def run_card(run: Path) -> dict[str, Any]:
    """
    :param run: folder of a run of ``train``
    :return: entries of the card about its training
    """
    settings = read_start(run)
    words = [word for word in settings["arguments"] if word != "--progress"]
    if "--log-folder" in words:
        at = words.index("--log-folder")
        del words[at : at + 2]
    preset = ["--preset", settings["preset"]] if settings["preset"] else []
    return dict(
        preset=settings["preset"], command=shlex.join(["python", "-m", "sb3_mpc.zoo", "train", *words, *preset])
    )


def main(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``publish``
    """
    agent, run = find(args), Path(args.agent or "")
    of_run = args.agent is not None and run.is_dir()
    rows = read_csv(args.curve) if args.curve else read_run(settings_file(run)) if of_run else None
    card = run_card(run) if of_run else {}
    file = find_agent(args.algo, find_environment(args.env)) if args.agent is None else run
    if file.suffix == ".safetensors":  # evaluated again: how it was trained is what its own card says
        its = read_card(file)
        card = {name: its[name] for name in OF_THE_TRAINING if its.get(name) is not None}
    given = dict(preset=args.preset, command=args.trained_by)
    card |= {name: value for name, value in given.items() if value is not None}
    print(f"Wrote {publish(agent, args, rows, **card)}")
