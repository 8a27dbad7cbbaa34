"""
Folders of runs of earlier versions, which hold pickles, as folders that hold data only:
``python -m sb3_mpc.zoo convert RUN NEW --trust``. To read pickles may run code, once and for all here.
"""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import sb3_mpc
from sb3_mpc.agents.agent_files import save_agent
from sb3_mpc.agents.data_files import is_data
from sb3_mpc.agents.normalization import normalization_settings
from sb3_mpc.zoo import rl_zoo
from sb3_mpc.zoo.checkpoint_files import NAME, write_checkpoint
from sb3_mpc.zoo.run_folder import read_arguments, settings_file

# Files that are replaced, and those that only say who works on a run
REPLACED = {".zip", ".pkl"}


def convert_run(run: Path, target: Path) -> Path:
    """
    :param run: folder of a run whose pickles are trusted; it stays as it is
    :param target: folder to write, which must not exist
    :return: the same
    :raises FileExistsError: if the target exists
    :raises ValueError: if the run is of another method, or cannot be converted
    """
    from rl_zoo3 import create_test_env, get_saved_hyperparams

    settings = settings_file(run)
    arguments = read_arguments(settings, trust=True)
    if arguments["algo"] not in sb3_mpc.ALGORITHMS:
        raise ValueError(f"{run} is a run of {arguments['algo']}, which is no method of sb3_mpc.")
    if target.exists():
        raise FileExistsError(f"{target} exists: give a new folder.")
    algorithm, env_id = sb3_mpc.ALGORITHMS[arguments["algo"]], rl_zoo.find_environment(arguments["env"])
    hyperparams, statistics = get_saved_hyperparams(str(settings.parent), test_mode=True)
    env_kwargs = {**(hyperparams.pop("env_kwargs", None) or {}), **(arguments["env_kwargs"] or {})}
    start = run / rl_zoo.RUN_FILE
    preset = json.loads(start.read_text())["preset"] if start.exists() else None
    if not (settings.parent / "vecnormalize.pkl").exists():  # written at the end, or with the best agent
        hyperparams["normalize"] = False

    def environment(n_envs: int = 1) -> Any:
        return create_test_env(
            env_id, n_envs, statistics, should_render=False, hyperparams={**hyperparams}, env_kwargs={**env_kwargs}
        )

    for path in sorted(run.rglob("*")):
        inside = path.relative_to(run)
        if path.is_file() and path.suffix not in REPLACED and inside.parts[0] != "checkpoints" and path.name != ".lock":
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / inside)
    for archive in (run / f"{settings.parent.name}.zip", run / "best_model.zip"):
        if archive.exists():
            env = environment()
            save_agent(
                algorithm.load(archive, env, device="cpu"), target / f"{archive.stem}.safetensors", preset=preset
            )
            env.close()
    for path in sorted((run / "checkpoints").glob("step_*")):
        if NAME.fullmatch(path.name) and (path / "model.zip").exists():
            env = environment(int(hyperparams.get("n_envs", 1)))
            convert_checkpoint(path, target / "checkpoints" / path.name, algorithm, env)
            env.close()
    return target


def convert_checkpoint(path: Path, target: Path, algorithm: Any, env: Any) -> None:
    """
    :param path: checkpoint of an earlier version
    :param target: folder to write
    :param algorithm: class of its agent
    :param env: environment of its agent
    """
    with open(path / "state.pkl", "rb") as file:
        state = pickle.load(file)
    model = algorithm.load(path / "model.zip", env, device="cpu")
    model.load_replay_buffer(path / "replay_buffer.pkl")
    normalize = model.get_vec_normalize_env()
    state["normalization_settings"] = None if normalize is None else normalization_settings(normalize)
    state["callbacks"] = [
        {name: value for name, value in callback.items() if is_data(value)} for callback in state["callbacks"]
    ]
    target.mkdir(parents=True)
    write_checkpoint(target, model, state, model.num_timesteps, exact=True)
