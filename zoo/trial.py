"""One run of a benchmark: training by the command ``train``, evaluated at fixed frames, with the time of each apart."""

import functools
import json
import os
import shutil
import time
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_mpc.agents.agent_files import save_agent
from sb3_mpc.agents.provenance import git_commit
from sb3_mpc.agents.training_files import save_training
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.zoo import rl_zoo
from sb3_mpc.zoo.bench import machine
from sb3_mpc.zoo.checkpoint_files import BUFFER, checkpoints_of
from sb3_mpc.zoo.evaluate import measure
from sb3_mpc.zoo.queue import Run, write_rows, write_text
from sb3_mpc.zoo.returns import action_repeat
from sb3_mpc.zoo.run_folder import plain

# Evaluations draw other episodes than training
EVALUATION_SEED = 1_000_000


class Times(NamedTuple):
    """
    Time that a process has taken.

    :param cpu: seconds of all its threads, and of its children that have ended, such as compilers
    :param wall: seconds of a clock
    """

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> "Times":
        """:return: the present times"""
        times = os.times()
        return cls(times.user + times.system + times.children_user + times.children_system, time.monotonic())

    def plus(self, other: "Times", sign: int = 1) -> "Times":
        """:return: the sum, or the difference for -1"""
        return Times(self.cpu + sign * other.cpu, self.wall + sign * other.wall)


class MeasuredEvaluation(BaseCallback):
    """
    Evaluates the agent as it acts (planner, deterministic) at fixed decisions and, by :meth:`finish`, at the end, and
    writes a row each. Of Fac-TDMPC that is the expert before, and its student at the end.

    Episodes depend on the seed of the run and the decision alone, so that a resumed run repeats them. Time of training
    is all that is not evaluation, from the start of the process on, so that it includes imports and compiling; after a
    run was resumed, it goes on from its checkpoint with the first step.

    :param run: the run
    :param eval_env: environments of the evaluation alone
    :param begin: times when the process has begun
    :param label: entries of every row
    """

    def __init__(self, run: Run, eval_env: VecEnv, begin: Times, label: dict[str, Any]) -> None:
        super().__init__()
        self.run, self.eval_env, self.label, self._clock = run, eval_env, label, begin
        self.settings = run.settings
        # State that checkpoints keep; see sb3_mpc.zoo.resume
        self.rows: list[dict[str, Any]] = []
        self.spent: dict[str, tuple[float, ...]] = dict(train=(0.0, 0.0), evaluate=(0.0, 0.0))
        self.resumed = 0

    def _count(self, what: str) -> None:
        """Add the time since the last call to ``what``."""
        now = Times.now()
        spent = Times(*self.spent[what]).plus(now.plus(self._clock, -1))
        self.spent = {**self.spent, what: tuple(spent)}
        self._clock = now

    def _on_training_start(self) -> None:
        if self.num_timesteps > 0:
            self.resumed += 1
            self._clock = Times.now()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Here the last transition is learned from
        self._count("train")
        last = self.rows[-1]["decisions"] if self.rows else 0
        every = self.settings["eval_decisions"]
        if self.model.num_timesteps // every > last // every:
            self._evaluate()

    def finish(self) -> None:
        """Evaluate and save the agent that is the result of the training."""
        self._count("train")
        if not self.rows or self.rows[-1]["decisions"] < self.model.num_timesteps:
            self._evaluate()
        self._save()

    def _evaluate(self) -> None:
        decisions = self.model.num_timesteps
        # The training environment may be normalised by statistics that have changed
        if isinstance(self.training_env, VecNormalize):
            sync_envs_normalization(self.training_env, self.eval_env)
        sequence = np.random.SeedSequence([EVALUATION_SEED, self.settings["seed"], decisions])
        self.eval_env.seed(int(sequence.generate_state(1)[0]) % 2**31)
        found = measure(self.model, self.eval_env, self.settings["episodes"])
        self._count("evaluate")
        train, evaluate = (Times(*self.spent[name]) for name in ("train", "evaluate"))
        row = {
            **self.label,
            "frames": decisions * self.settings["repeat"],
            "decisions": decisions,
            "return": round(found["mean"], 3),
            "return_std": round(found["std"], 3),
            "success": found.get("success", ""),
            "train_cpu_s": round(train.cpu, 2),
            "train_wall_s": round(train.wall, 2),
            "eval_cpu_s": round(evaluate.cpu, 2),
            "eval_wall_s": round(evaluate.wall, 2),
            "resumed": self.resumed,
        }
        self.rows = [*self.rows, row]
        write_rows(self.run.folder / "rows.csv", self.rows)
        print(f"{row['frames']} frames: return {row['return']} +- {row['return_std']}", flush=True)

    def _save(self) -> None:
        """Write the agent as a file that acts."""
        if isinstance(self.model, WorldModelAlgorithm):
            steps = {name: self.rows[-1][name] for name in ("decisions", "frames")}
            evaluation = dict(
                episodes=self.settings["episodes"],
                mean_return=self.rows[-1]["return"],
                std_return=self.rows[-1]["return_std"],
            )
            preset = self.settings["preset"] or None
            save_agent(
                self.model, self.run.folder / "agent.safetensors", preset=preset, steps=steps, evaluation=evaluation
            )
        elif isinstance(self.model, OffPolicyAlgorithm):
            save_training(self.model, self.run.folder / "agent.npz")


class MeasuredExperiment(rl_zoo.Experiment):
    """
    Experiment with a :class:`MeasuredEvaluation`.

    :param measured: its arguments without the environments
    """

    def __init__(self, *args: Any, measured: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.measured = measured

    def create_callbacks(self) -> None:
        """Create the callbacks; the evaluation is before the checkpoint, which keeps its state."""
        eval_env = self.create_envs(self.n_eval_envs, eval_env=True)
        self.evaluation = MeasuredEvaluation(eval_env=eval_env, **self.measured)
        self.callbacks.append(self.evaluation)
        super().create_callbacks()

    def learn(self, model: BaseAlgorithm) -> None:
        """
        As the command ``train``, with the last evaluation after it: a callback would be asked before the student of
        Fac-TDMPC is distilled.

        :param model: agent, new or from a checkpoint
        """
        super().learn(model)
        if self.status == 0:
            self.evaluation.finish()


def execute(run: Run, wall_begin: float) -> None:
    """
    Work on a run that this process holds until it is finished.

    :param run: the run
    :param wall_begin: ``time.monotonic()`` when the process has begun
    :raises RuntimeError: if it was interrupted
    """
    settings, log_folder = run.settings, run.folder / "train"
    checkpoints = sorted(log_folder.glob("*/*/checkpoints/step_*"))
    if not checkpoints:  # killed before the first one
        shutil.rmtree(log_folder, ignore_errors=True)
    decisions = settings["decisions"]
    about = machine(settings["device"])
    label = {name: settings[name] for name in ("suite", "method", "algo", "preset", "task", "seed")}
    label |= dict(commit=git_commit() or "unknown", cpu=about["cpu"])
    options = [
        *("--algo", settings["algo"], "--env", settings["task"], "--seed", str(settings["seed"])),
        *("--n-timesteps", str(decisions), "--log-folder", str(log_folder), "--device", settings["device"]),
        *("--eval-freq", "-1", "--n-eval-envs", str(min(settings["episodes"], 10))),
        *("--num-threads", str(settings["threads"]), "--log-interval", "-2"),
    ]
    hyperparams = settings.get("hyperparams", [])
    for item in hyperparams:
        plain(item.partition(":")[2])  # raises ValueError: rl_zoo3 evaluates it
    if settings["algo"] == "sac":  # never full in so few steps; the checkpoint holds all of it, filled or not
        hyperparams = [*hyperparams, f"buffer_size:{min(decisions, 1_000_000)}"]
    options += ["--hyperparams", *hyperparams] if hyperparams else []
    rl_zoo.train(
        options,
        preset=settings["preset"] or None,
        checkpoint_freq=settings["eval_decisions"],
        resume=checkpoints[0].parents[1] if checkpoints else None,
        experiment=functools.partial(
            MeasuredExperiment, measured=dict(run=run, begin=Times(0.0, wall_begin), label=label)
        ),
    )
    rows = run.rows
    if not rows or int(rows[-1]["decisions"]) < decisions:
        raise RuntimeError("The run was interrupted.")
    if settings["save_data"]:
        for folder in log_folder.glob("*/*/checkpoints"):
            newest = next(iter(checkpoints_of(folder).values()))
            (newest / BUFFER).replace(run.folder / BUFFER)
    result = dict(rows[-1], machine={**about, "threads": th.get_num_threads()})
    write_text(run.folder / "result.json", json.dumps(result, indent=1) + "\n")
    tidy(run)


def tidy(run: Run) -> None:
    """
    :param run: finished run, of which the checkpoints are removed; the agent is in a file of its own
    """
    for path in run.folder.glob("train/*/*"):
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
        for name in (f"{path.name.rpartition('_')[0]}.{suffix}" for suffix in ("safetensors", "npz")):
            (path / name).unlink(missing_ok=True)


def settings_of(
    suite: str, algo: str, preset: str, task: str, seed: int, label: str = "", **common: Any
) -> dict[str, Any]:
    """
    :param suite: name of the set of tasks, which only labels the rows
    :param algo: key of a method, or ``"sac"``
    :param preset: reduced preset, empty for none
    :param task: id of the environment
    :param seed: seed
    :param label: name of the changes to the preset, empty for none
    :param common: further settings; ``frames`` and ``eval_frames`` are simulator frames
    :return: settings of a run
    :raises ValueError: if frames are no whole number of decisions
    """
    repeat = action_repeat(task, {})
    for name in ("frames", "eval_frames"):
        if common[name] % repeat or common[name] < repeat:
            raise ValueError(f"{common[name]} frames of {task} are no whole number of decisions of {repeat} frames.")
    kind = ", ".join(filter(None, [preset, label]))
    return dict(
        suite=suite,
        method=f"{algo} ({kind})" if kind else algo,
        algo=algo,
        preset=preset,
        task=task,
        seed=seed,
        repeat=repeat,
        decisions=common["frames"] // repeat,
        eval_decisions=common["eval_frames"] // repeat,
        **common,
    )
