"""
Trained agents: find, load, convert and share them. Commands ``list``, ``convert``, ``load-from-hub`` and
``push-to-hub``.
"""

import argparse
import difflib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch as th
from stable_baselines3.common.type_aliases import GymEnv

import sb3_mpc
import sb3_mpc.envs
from sb3_mpc.agents.agent_files import load_agent, save_agent
from sb3_mpc.agents.agent_format import read_agent
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.files import complete_name
from sb3_mpc.zoo import cards
from sb3_mpc.zoo.card_facts import agent_name, class_name, environment_of, frames_of, returns_of
from sb3_mpc.zoo.cards import card_text, read_cards

HUB = "SB3_MPC_HUB"  # environment variable: hub repository or folder with agents that the package does not have


def available() -> list[tuple[str, str]]:
    """:return: method and environment of the trained agents in the package"""
    return [(card["algorithm"], environment_of(card)) for card in read_cards(cards.CHECKPOINTS).values()]


def load(
    algo: str,
    env_id: str,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    repo_id: str | None = None,
    revision: str | None = None,
) -> WorldModelAlgorithm:
    """
    :param algo: key of the method, such as ``"tdmpc2"``
    :param env_id: id of the environment that the agent was trained in
    :param env: environment to act or to train on in, see :func:`sb3_mpc.agents.agent_files.load_agent`
    :param device: device of the agent
    :param repo_id: repository of the Hugging Face hub, or folder, with the agent; by default the package is searched
        first, then the repository or folder that the environment variable ``SB3_MPC_HUB`` names
    :param revision: revision of the repository
    :return: the trained agent
    :raises ValueError: if there is no such agent, or its file is damaged
    """
    path = find(algo, env_id, repo_id, revision)
    model = load_agent(path, env, device)
    if type(model) is not sb3_mpc.ALGORITHMS[algo]:
        raise ValueError(f"{path} holds a {type(model).__name__} in spite of its name: do not use it.")
    return model


def find(algo: str, env_id: str, repo_id: str | None = None, revision: str | None = None) -> Path:
    """
    Find the file of an agent, and download it if needed. The arguments are those of :func:`load`.

    :return: the file
    :raises ValueError: if there is no such agent
    """
    if algo not in sb3_mpc.ALGORITHMS:
        raise ValueError(f"There is no method {algo!r}{nearest(algo, sb3_mpc.ALGORITHMS)}.")
    name = f"{agent_name(algo, env_id)}.safetensors"
    path, source = cards.CHECKPOINTS / name, repo_id or os.environ.get(HUB)
    if repo_id is None and path.exists():
        return path
    if source is None:
        known = [" for ".join(pair) for pair in available()]
        raise ValueError(
            f"The zoo has no agent of {algo} for {env_id}{nearest(f'{algo} for {env_id}', known)}; one that is "
            "elsewhere needs repo_id, a hub repository or a folder."
        )
    if Path(source).is_dir():
        path = Path(source) / name
        if not path.exists():
            raise ValueError(f"The folder {source} has no {name}{nearest(path.stem, read_cards(Path(source)))}.")
        return path
    return _download(source, name, revision)


def nearest(name: str, known: Iterable[str]) -> str:
    """
    :param name: unknown name
    :param known: known names
    :return: continuation of a sentence with the known names that are most similar
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:8]
    return f": nearest are {', '.join(close)}" if close else ""


def _download(repo_id: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision, library_name="sb3-mpc"))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} could not be downloaded from {repo_id} (neither a folder here nor a repository of the Hugging "
            f"Face hub that has it): {reason}"
        ) from error


def push(path: str | Path, repo_id: str, private: bool = False) -> str:
    """
    Share an agent on the Hugging Face hub: its file, under the name that :func:`load` looks for, and its model card.

    :param path: agent file
    :param repo_id: repository, ``user/name``; made if there is none
    :param private: whether a new repository is private
    :return: URL of the commit
    :raises ValueError: if the file does not name its environment
    """
    from huggingface_hub import EvalResult, HfApi, ModelCardData

    card, _ = read_agent(path)
    if card["environment"] is None:
        raise ValueError(f"{path} does not name its environment: write it with save_agent(..., environment=ID).")
    env_id, evaluation = environment_of(card), card["evaluation"] or {}
    results = None
    if "mean_return" in evaluation:
        results = [EvalResult("reinforcement-learning", env_id, env_id, "mean_reward", evaluation["mean_return"])]
    about = ModelCardData(
        library_name="sb3-mpc",
        tags=["reinforcement-learning", "deep-reinforcement-learning", "stable-baselines3", card["algorithm"], env_id],
        model_name=class_name(card),
        eval_results=results,
    )
    api = HfApi(library_name="sb3-mpc")
    with tempfile.TemporaryDirectory() as folder:
        name = f"{agent_name(card['algorithm'], env_id)}.safetensors"
        shutil.copy(complete_name(path, "safetensors"), Path(folder) / name)
        text = f"---\n{about.to_yaml()}\n---\n\n{card_text(card)}"
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Agent {name}"))


def convert(source: str | Path, target: str | Path, algo: str | None = None, env_id: str | None = None) -> Path:
    """
    Convert the zip file of ``model.save`` to an agent file, or an agent file to such a zip file. Deterministic
    predictions stay the same, bit for bit.

    A zip file may run code when it is loaded: convert those that you trust. It lacks the statistics of
    ``VecNormalize``: load such an agent with its environment and call ``save_agent``. An agent file lacks the state of
    the optimisers.

    :param source: ``.zip`` or ``.safetensors``
    :param target: file to write, of the other kind
    :param algo: key of the method, for a zip file, which does not name it
    :param env_id: id of the environment, for a zip file, which does not name it; optional
    :return: the file
    :raises ValueError: if these files cannot be converted
    """
    kinds = [Path(source).suffix, Path(target).suffix]
    if not Path(source).is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    if kinds == [".safetensors", ".zip"]:
        card, _ = read_agent(source)
        if card["vec_normalize"]:
            raise ValueError(
                f"{source} was trained under VecNormalize, which a zip file does not hold: load it by load_agent with "
                "its environment, and save both model and model.get_vec_normalize_env()."
            )
        load_agent(source, device="cpu").save(target)
    elif kinds == [".zip", ".safetensors"]:
        if algo not in sb3_mpc.ALGORITHMS:
            raise ValueError(
                f"{source} does not say which method it is of: give algo, one of {', '.join(sb3_mpc.ALGORITHMS)}."
            )
        save_agent(sb3_mpc.ALGORITHMS[algo].load(source, device="cpu"), target, environment=env_id)
    else:
        raise ValueError(f"Cannot convert {source} to {target}: one is to end in .zip, the other in .safetensors.")
    return Path(target)


# -- Commands ----------------------------------------------------------------------------------------------------------


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``list``
    """
    parser.add_argument("--folder", type=Path, help="folder of agent files (default: those of the package)")


def list_agents(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``list``
    """
    if args.folder is not None and not args.folder.is_dir():
        raise FileNotFoundError(f"There is no folder {args.folder}.")
    rows = [("method", "environment", "frames", "return", "file")]
    for name, card in read_cards(args.folder or cards.CHECKPOINTS).items():
        planner, _ = returns_of(card)
        rows.append((card["algorithm"], environment_of(card), frames_of(card), planner, name))
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]))]
    for row in rows:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``convert``
    """
    parser.epilog = "Runs of earlier versions hold pickles: `convert RUN NEW --trust` writes a folder of data only."
    parser.add_argument("source", type=Path, help=".zip file of save(), .safetensors file, or folder of an older run")
    parser.add_argument("target", type=Path, help="file of the other kind, or folder, to write")
    parser.add_argument("--algo", help="method of a .zip file, such as tdmpc2")
    parser.add_argument("--env", help="environment of a .zip file, such as dmc/walker-walk-v0; optional")
    parser.add_argument("--trust", action="store_true", help="load pickles, which may run code that is in them")


def convert_file(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``convert``
    """
    if not args.trust and args.source.exists() and args.source.suffix != ".safetensors":
        raise ValueError(f"To load {args.source} may run code that is in it: if you trust its source, add --trust.")
    if args.source.is_dir():
        from sb3_mpc.zoo.convert_run import convert_run

        print(f"Wrote {convert_run(args.source, args.target)}")
        return
    print(f"Wrote {convert(args.source, args.target, args.algo, args.env)}")


def add_download_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``load-from-hub``
    """
    parser.add_argument("--algo", required=True, help="method, such as tdmpc2")
    parser.add_argument("--env", required=True, help="environment, such as dmc/walker-walk-v0")
    parser.add_argument("--repo-id", help=f"repository, user/name, or a folder (default: what {HUB} names)")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--folder", type=Path, default=Path("."), help="folder to write to (default: this one)")


def download(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``load-from-hub``
    """
    path = find(args.algo, args.env, args.repo_id, args.revision)
    card, _ = read_agent(path)
    args.folder.mkdir(parents=True, exist_ok=True)
    target = Path(shutil.copy(path, args.folder / path.name))
    print(f"Wrote {target}, a {class_name(card)} for {environment_of(card)}")


def add_upload_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``push-to-hub``
    """
    parser.add_argument("file", type=Path, help="agent file, .safetensors")
    parser.add_argument("--repo-id", required=True, help="repository, user/name; made if there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def upload(args: argparse.Namespace) -> None:
    """
    :param args: command line of ``push-to-hub``
    """
    print(f"Pushed {args.file}: {push(args.file, args.repo_id, args.private)}")
