"""
One agent of several tasks, from data alone or by acting: its scores, and what it is worth as the start of a new task.

    python -m sb3_mpc.zoo.studies.pretraining data                    # seven tasks, recorded from agents of the zoo
    python -m sb3_mpc.zoo.studies.pretraining data --runs dmc32       # or what `benchmark --save-data` has kept
    python -m sb3_mpc.zoo.studies.pretraining pretrain --algo tdmpc2 --size medium
    python -m sb3_mpc.zoo.studies.pretraining pretrain --algo tdmpc_square --params "actor_mode:'awac'"
    python -m sb3_mpc.zoo.studies.pretraining act --tasks dmc/walker-stand-v0 dmc/walker-walk-v0 --data logs/acting
    python -m sb3_mpc.zoo.studies.pretraining finetune --algo tdmpc2 --task dmc/walker-run-v0 --seed 0
    python -m sb3_mpc.zoo.studies.pretraining scratch --algo tdmpc2 --task dmc/walker-run-v0 --seed 0
    python -m sb3_mpc.zoo.studies.pretraining plot
    python -m sb3_mpc.zoo.studies.pretraining publish                 # the agent, and a finetuned one, for the zoo

``pretrain`` and ``act`` append to ``results/pretraining-scores.csv``, a row for each task, and keep the agent;
``finetune`` and ``scratch`` append to ``results/pretraining-curves.csv``. The experiments are those of TD-MPC2
(figures 4 and 5) and MBDPO in small: data, models and updates of two CPU cores. Tasks to finetune are not among those
that the agent has learned.
"""

import argparse
import csv
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env

import sb3_mpc
import sb3_mpc.envs
from sb3_mpc import zoo
from sb3_mpc.agents.agent_files import load_agent, read_card, save_agent
from sb3_mpc.agents.training_files import read_buffer
from sb3_mpc.common.callbacks.latents import to_plane
from sb3_mpc.common.policies.multitask import short_name
from sb3_mpc.envs import make_multitask
from sb3_mpc.offline import Dataset, merge
from sb3_mpc.offline.writer import DatasetWriter
from sb3_mpc.zoo.card_facts import SCORE, agent_name
from sb3_mpc.zoo.cards import CHECKPOINTS
from sb3_mpc.zoo.checkpoint_files import BUFFER
from sb3_mpc.zoo.data import play
from sb3_mpc.zoo.multitask import Evaluations, add_task, evaluate_tasks, make_task, use_preset
from sb3_mpc.zoo.plot import pyplot
from sb3_mpc.zoo.presets import load_preset
from sb3_mpc.zoo.pretrain import setting
from sb3_mpc.zoo.queue import runs_of
from sb3_mpc.zoo.studies.comparison import EPISODES, RESULTS
from sb3_mpc.zoo.studies.factored import read

# Tasks of TDMPC2's agents in the zoo
TASKS = [
    f"dmc/{name}-v0"
    for name in (
        *("cartpole-balance", "cartpole-swingup", "cup-catch", "finger-spin", "reacher-easy"),
        *("walker-stand", "walker-walk"),
    )
]
ACTED = ["dmc/walker-stand-v0", "dmc/walker-walk-v0", "dmc/walker-walk-backwards-v0"]
PARTS = {"planner": 0.0, "network": 0.3, "random": 1.0}  # who acts, and the part of random actions
PLANNER = dict(iterations=3, num_samples=64, num_elites=12, num_pi_trajs=12)
TRANSITIONS = 5_000  # of each part of each task
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(latent_dim=32, enc_dim=64, net_arch=[64, 64]),
    "medium": dict(latent_dim=64, enc_dim=128, net_arch=[128, 128]),  # of the preset "small"
    "large": dict(latent_dim=128, enc_dim=256, net_arch=[256, 256]),
}
START = dict(learning_starts=3_000, pretrain_gradient_steps=1_000)  # of an agent that acts in several tasks
UPDATES, BATCH_SIZE, DECISIONS, EVERY = 6_000, 128, 10_000, 2_500
NAME = "several-tasks"  # of the pretrained agent in the zoo
KEPT = ("command", "commit", "note", "preset", "seed")  # of a card when its agent is published
Row = dict[str, Any]


def append(rows: Sequence[Row], path: Path) -> None:
    """
    :param rows: rows of the same columns
    :param path: CSV file
    """
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def this_command() -> str:
    """:return: the command line that is running"""
    return shlex.join(["python", "-m", "sb3_mpc.zoo.studies.pretraining", *sys.argv[1:]])


def agent_of(args: argparse.Namespace) -> Path:
    """:return: file of the pretrained agent"""
    return Path(args.data) / f"{args.algo}-{args.size}.safetensors"


def transitions_of(args: argparse.Namespace) -> int:
    """:return: number of transitions that the pretrained agent has learned from"""
    recorded = args.data / "tasks"
    return Dataset.load(recorded).rows if recorded.exists() else read_card(agent_of(args))["steps"]["decisions"]


def data(args: argparse.Namespace) -> None:
    """
    Put data of several tasks together: what the finished runs of a benchmark have collected while they learned, all but
    the task to finetune, or what is recorded now.

    :param args: command line
    """
    args.data.mkdir(parents=True, exist_ok=True)
    parts = list(recorded(args) if args.runs is None else of_trainings(args.runs, args.task))
    print(merge(parts, args.data / "tasks", [part.tasks[0].name for part in parts], overwrite=True).describe())


def of_trainings(folder: Path, but: str) -> Iterator[Dataset]:
    """
    :param folder: folder of ``benchmark --save-data``
    :param but: task that is left out
    :return: all transitions of each finished run
    """
    for run in runs_of(folder):
        buffer, task = run.folder / BUFFER, run.settings["task"]
        if run.finished and buffer.exists() and task != but:
            yield Dataset.from_replay_buffer(read_buffer(buffer), tasks=[task])


def recorded(args: argparse.Namespace) -> Iterator[Dataset]:
    """
    :param args: command line
    :return: transitions of each task: a third by the agents as they explore, a third by their networks without planning
        and with three tenths of random actions, and a third random
    """
    for task in TASKS:
        agent: Any = zoo.load("tdmpc2", task, device="cpu")
        for name, value in PLANNER.items():  # that of the preset "small", which the older agents do not have
            setattr(agent.policy.planner, name, value)
        actors: dict[str, Any] = dict(planner=agent, network=agent.actor, random=None)
        for part, random in PARTS.items():
            path = args.data / f"{short_name(task)}-{part}"
            if not path.exists():
                env, rng = make_vec_env(task, EPISODES, seed=args.seed), np.random.default_rng(args.seed)
                spaces = (env.observation_space, env.action_space)
                with DatasetWriter(path, *spaces, tasks=[task], episode_lengths=[TRANSITIONS // EPISODES]) as writer:
                    for episode in play(env, actors[part], TRANSITIONS, random, False, rng):
                        writer.add(**episode)
            yield Dataset.load(path)


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """:return: single settings of the command line"""
    return {name: value for item in args.params for name, value in setting(item).items()}


def new_agent(args: argparse.Namespace, env: Any, **settings: Any) -> Any:
    """
    :param args: command line
    :param env: environment, or spaces, of all tasks
    :param settings: further arguments
    :return: an agent of several tasks with the preset "small" and single settings of the command line
    """
    return sb3_mpc.ALGORITHMS[args.algo](
        "MultitaskPolicy",
        env,
        preset="small",
        policy_kwargs=SIZES[args.size],
        seed=args.seed,
        device="cpu",
        **{**settings, **changes(args)},
    )


def pretrain(args: argparse.Namespace) -> None:
    """
    :param args: command line
    """
    known = Dataset.load(args.data / "tasks")
    model = new_agent(args, known.as_env(), batch_size=BATCH_SIZE)
    started = time.process_time()
    model.learn_offline(known, args.updates)
    minutes = (time.process_time() - started) / 60
    note = f"learned from {known.rows:,} recorded transitions by {args.updates:,} updates, without acting"
    save_agent(model, agent_of(args), note=note)
    record(args, model, [task.name for task in known.tasks], args.params, minutes, known.rows)


def act(args: argparse.Namespace) -> None:
    """
    Learn all tasks by acting in them, each in ten environments, with an update for each decision.

    :param args: command line
    """
    args.data.mkdir(parents=True, exist_ok=True)
    env = make_multitask(args.tasks, copies=EPISODES, seed=args.seed)
    total = args.decisions * len(args.tasks)
    model = new_agent(args, env, **START)
    started = time.process_time()
    model.learn(total)
    minutes = (time.process_time() - started) / 60
    note = f"{args.decisions:,} decisions in each of {len(args.tasks)} tasks, {minutes:.0f} minutes of one core"
    save_agent(model, agent_of(args), note=note, command=this_command())
    record(args, model, args.tasks, ["acting", *args.params], minutes, total)


def record(
    args: argparse.Namespace, model: Any, tasks: Sequence[str], params: Sequence[str], minutes: float, transitions: int
) -> None:
    """
    Evaluate an agent of several tasks, and append its scores.

    :param args: command line
    :param model: the agent
    :param tasks: ids of its tasks
    :param params: what is said of its training
    :param minutes: time of the training
    :param transitions: that it has learned from
    """
    networks = model.policy.world_model
    parameters = sum(p.numel() for name, p in networks.named_parameters() if "target" not in name)
    run = dict(algo=args.algo, size=args.size, parameters=parameters, updates=model._n_updates, seed=args.seed)
    run |= dict(cpu_minutes=round(minutes, 1), params=" ".join(params), tasks=len(tasks), transitions=transitions)
    scores: Any = evaluate_tasks(model, tasks, args.episodes, seed=1_000, network=True)
    rows = [
        dict(run, task=row.task, score=round(row.score, 1), std=round(row.std / 10, 1), network=round(row.network, 1))
        for row in scores
    ]
    append(rows, args.folder / "pretraining-scores.csv")


def learn(args: argparse.Namespace) -> None:
    """
    Learn a task that is not among those of the data, from the pretrained agent or from scratch: as many decisions, of
    which an agent from scratch acts randomly in the first 1,000, and the same number of updates of the same batches.

    :param args: command line
    """
    if args.study == "finetune":
        model: Any = load_agent(agent_of(args), device="cpu")
        task = add_task(model, args.task, args.like, n_envs=EPISODES)
        use_preset(model, "small")
        model.set_random_seed(args.seed)
        env = make_task(model, args.task, task, EPISODES)
    else:
        settings = load_preset(args.algo, args.task, "small")
        policy, _ = settings.pop("policy"), settings.pop("n_timesteps")
        own = make_vec_env(args.task, settings.pop("n_envs"), seed=args.seed)
        settings["policy_kwargs"] = {**settings["policy_kwargs"], **SIZES[args.size]}
        settings |= changes(args)
        model = sb3_mpc.ALGORITHMS[args.algo](policy, own, seed=args.seed, device="cpu", **settings)
        env = make_vec_env(args.task, EPISODES)
    path = args.data / f"{args.study}-{args.algo}-{short_name(args.task)}-{args.seed}.csv"
    evaluations = Evaluations(env, EVERY, EPISODES, path, seed=1_000)
    started = time.process_time()
    model.learn(DECISIONS, evaluations)
    run: Row = dict(start=args.study, algo=args.algo, size=args.size, task=args.task, seed=args.seed)
    run["cpu_minutes"] = round((time.process_time() - started) / 60, 1)
    run["transitions"] = transitions_of(args) if args.study == "finetune" else 0
    rows = [
        dict(run, decisions=row.decisions, frames=2 * row.decisions, score=round(row.score, 1)) | {"return": row.mean}
        for row in evaluations.found
    ]
    append(rows, args.folder / "pretraining-curves.csv")
    note = f"{args.study}, {DECISIONS:,} decisions"
    save_agent(model, path.with_suffix(".safetensors"), note=note, command=this_command())


def publish(args: argparse.Namespace) -> None:
    """
    Write the pretrained agent and its finetuned child of the first seed to the zoo.

    :param args: command line
    """
    child = args.data / f"finetune-{args.algo}-{short_name(args.task)}-{args.seed}.safetensors"
    for path, name in ((agent_of(args), NAME), (child, f"{NAME}-{short_name(args.task)}")):
        model: Any = load_agent(path, device="cpu")
        scores = evaluate_tasks(model, model.policy.task_names, EPISODES, seed=1)
        evaluation = {f"{SCORE}{row.task}": round(row.score, 2) for row in scores} | dict(episodes=EPISODES, seed=1)
        kept = {name: value for name, value in read_card(path).items() if name in KEPT}
        decisions = DECISIONS if path == child else (read_card(path)["steps"] or {}).get("decisions")
        steps = None if decisions is None else dict(decisions=decisions, frames=2 * decisions)
        entries = dict(kept, environment=name, evaluation=evaluation, steps=steps)
        print(save_agent(model, args.checkpoints / agent_name(args.algo, name), "float16", **entries))


def plot(args: argparse.Namespace) -> None:
    """
    :param args: command line; writes ``pretraining.png``
    """
    scores, curves = (read(args.folder / f"pretraining-{name}.csv") for name in ("scores", "curves"))
    panels = sorted({(row["algo"], row["task"]) for row in curves}, reverse=True)
    plt = pyplot()
    figure, (bars, plane, *axes) = plt.subplots(
        1, 2 + len(panels), figsize=(7 + 3.4 * (1 + len(panels)), 3.4), width_ratios=[1.3, *[1] * (1 + len(panels))]
    )
    agents: dict[str, list[Row]] = {}
    for row in scores:
        name = " ".join(filter(None, [sb3_mpc.ALGORITHMS[row["algo"]].__name__, row["params"]]))
        size, amount = f"{int(row['parameters']) / 1e6:.2f}M", f"{int(row['transitions']) // 1000}k data"
        agents.setdefault(f"{name}, {size}, {amount}, {int(row['updates']) // 1000}k updates", []).append(row)
    for place, rows in enumerate(agents.values()):
        mean = np.mean([float(row["score"]) for row in rows])
        bars.barh(place, mean, 0.7, color="#4878a8", label="planner")
        if rows[0]["network"]:
            alone = np.mean([float(row["network"]) for row in rows])
            bars.plot(alone, place, "D", color="#d65f5f", markersize=5, label="network policy")
    bars.set_yticks(range(len(agents)), list(agents), fontsize=8)
    bars.invert_yaxis()
    bars.set(xlim=(0, 100), xlabel="mean score of the tasks", title="From data alone")
    handles, labels = bars.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    bars.legend(unique.values(), unique.keys(), fontsize=8, loc="lower right")
    pretrained: Any = load_agent(args.data / "tdmpc2-medium.safetensors", device="cpu")
    table = pretrained.policy.world_model.task_embedding.weight.detach().numpy()
    points, method = to_plane(table)
    plane.scatter(*points.T, s=12)
    tasks = pretrained.policy.task_names
    for rank, i in enumerate(np.argsort(points[:, 1])):  # neighbours in height take different sides of their points
        side = dict(ha="left", xytext=(4, 3)) if rank % 2 else dict(ha="right", xytext=(-4, -9))
        plane.annotate(short_name(tasks[i]), points[i], fontsize=7, textcoords="offset points", **side)
    plane.set(xticks=[], yticks=[], title=f"Task embeddings ({method})")
    plane.margins(0.5, 0.2)
    for axis, (algo, task) in zip(axes, panels, strict=True):
        own = [row for row in curves if (row["algo"], row["task"]) == (algo, task) and " " not in row["start"]]
        for transitions in sorted({int(row["transitions"]) for row in own}):
            found: dict[int, list[float]] = {}
            for row in own:
                if int(row["transitions"]) == transitions:
                    found.setdefault(int(row["frames"]), []).append(float(row["return"]))
            frames = sorted(found)
            middle = [np.mean(found[frame]) for frame in frames]
            axis.plot(
                frames, middle, marker=".", label=f"from {transitions // 1000}k data" if transitions else "from scratch"
            )
            low, high = ([function(found[frame]) for frame in frames] for function in (min, max))
            axis.fill_between(frames, low, high, alpha=0.2)
        axis.set(title=f"{short_name(task)}, {sb3_mpc.ALGORITHMS[algo].__name__}", xlabel="frames", ylabel="return")
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.tight_layout()
    figure.savefig(args.folder / "pretraining.png", dpi=110)


STUDIES = dict(data=data, pretrain=pretrain, act=act, finetune=learn, scratch=learn, publish=publish, plot=plot)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--algo", default="tdmpc2", help="method, such as tdmpc2 or mbdpo")
    parser.add_argument("--size", default="medium", choices=SIZES)
    parser.add_argument("--tasks", nargs="+", default=ACTED, metavar="ID", help="tasks of act")
    parser.add_argument("--decisions", type=int, default=50_000, help="of act, in each task")
    parser.add_argument("--task", default="dmc/walker-run-v0", help="task to finetune, which the agent does not have")
    parser.add_argument("--like", help="task whose embedding it begins with (default: TD-MPC2's choice, if it has one)")
    parser.add_argument("--runs", type=Path, help="folder of `benchmark --save-data`, whose transitions are the data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=UPDATES, help="of pretrain")
    parser.add_argument(
        "--params", nargs="+", default=[], metavar="NAME:VALUE", help="settings of pretrain, act, scratch"
    )
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each task after pretraining")
    parser.add_argument("--data", type=Path, default=Path("logs/pretraining"), help="where data and agents are kept")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="where published agents go")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where CSV files and picture go")
    args = parser.parse_args()
    STUDIES[args.study](args)


if __name__ == "__main__":
    main()
