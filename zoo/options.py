"""Options of the commands, without the modules that run them, so that help is printed at once."""

import argparse
from pathlib import Path

from sb3_mpc import METHODS
from sb3_mpc.zoo.tasks import SUITES

TRUST = "let files run code: they may name modules, or be pickles. Only for files whose whole history you know"

EXAMPLES = """
examples:
  python -m sb3_mpc.zoo train --algo tdmpc2 --env dmc/walker-walk-v0
  python -m sb3_mpc.zoo train --algo bmpc --env dmc/cartpole-swingup-v0 --preset cpu -n 50000 -params num_samples:128
  python -m sb3_mpc.zoo train --resume logs/tdmpc2/dmc-walker-walk-v0_1

The folder of a run, logs/ALGO/ENV_NUMBER, holds its settings, the returns of its episodes (0.monitor.csv) and of its
evaluations (evaluations.npz), the best agent (best_model.safetensors), the last one
(ENV.safetensors) and, in checkpoints/, what
`--resume` needs, including the replay buffer; delete that when a run is finished. Ctrl-C saves a checkpoint first.

All options of `rl_zoo3.train` work, too, among them: --eval-freq, --eval-episodes, --vec-env subproc, --num-threads,
--device, -tb FOLDER (TensorBoard), --env-kwargs, -conf FILE (presets of yours), --n-trials, --storage, --study-name.
"""

BENCHMARK = """
Adds runs (method x task x seed) to the queue in FOLDER and works on it: the first seed of all tasks, then the second.
Without --suite and --tasks it continues with what is there. Everything may be killed at any moment: start the command
again. Several such commands at once share the queue.

--frames counts simulator frames as the papers do: decisions times the action repeat, which is 2 in DMControl, ManiSkill
and Meta-World, and 1 elsewhere. Every --eval-frames, and at the end, the planner is evaluated in environments of its
own; the time of that is measured apart from the time of training.

FOLDER/results.csv has a row for each evaluation of the finished runs, and can be given to `plot`. FOLDER/runs/NAME
holds the agent (agent.safetensors), the training episodes (train/), the output (log.txt) and the machine (result.json).

examples:
  python -m sb3_mpc.zoo benchmark --suite dmc32 --preset small --seeds 2 --folder dmc32
  python -m sb3_mpc.zoo benchmark --suite dmc32 --algo sac --seeds 2 --folder dmc32
  python -m sb3_mpc.zoo benchmark --folder dmc32 --status
"""


def add_train(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``train``
    """
    parser.epilog = EXAMPLES
    parser.add_argument("--algo", help=f"the method: {', '.join(METHODS)}")
    parser.add_argument("--env", help="an id that `python -m sb3_mpc.envs` lists, any id of Gymnasium, or module:id")
    parser.add_argument(
        "--preset",
        help='reduced settings that override the preset of the environment: "cpu", "small" or, for tdmpc2, "best"',
    )
    parser.add_argument("-n", "--n-timesteps", type=int, help="decisions of the agent, instead of the preset's number")
    parser.add_argument("--seed", type=int, help="random seed (default: drawn, and kept in the folder of the run)")
    parser.add_argument("-params", "--hyperparams", nargs="+", metavar="NAME:VALUE", help="single settings to change")
    parser.add_argument("-f", "--log-folder", default="logs", help="where the folders of runs are (default: logs)")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="resume the run of this folder; -params learning_rate:1e-4 changes that",
    )
    parser.add_argument("--step", type=int, help="resume from the checkpoint of this step (default: the newest)")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument("--n-eval-envs", type=int, help="environments of an evaluation (default: 1)")
    parser.add_argument("--eval-episodes", type=int, help="episodes of an evaluation (default: 5)")
    parser.add_argument(
        "--checkpoint-freq",
        type=int,
        metavar="N",
        help="decisions between checkpoints for --resume (default: 25000; 0: none), which hold the replay buffer",
    )
    parser.add_argument(
        "--save-data", action="store_true", help="at the end, write what was collected to the data set RUN/data"
    )
    parser.add_argument("--optimize", action="store_true", help="search hyper-parameters with Optuna instead")
    parser.add_argument("--track", action="store_true", help="log to Weights & Biases (pip install wandb)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar (there is none without terminal)")


def add_enjoy(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``enjoy``
    """
    parser.epilog = "A window needs a display and pygame; `record` needs neither to write a video."
    parser.add_argument("--algo", required=True, help="the method")
    parser.add_argument("--env", required=True, help="the environment")
    parser.add_argument("-f", "--folder", default="logs", help="where the folders of runs are (default: logs)")
    parser.add_argument("-n", "--n-timesteps", type=int, default=1_000, help="number of decisions (default: 1000)")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (default: the latest)")
    parser.add_argument("--load-best", action="store_true", help="the agent of the best evaluation")
    parser.add_argument("--n-envs", type=int, default=1, help="environments side by side (default: 1)")
    parser.add_argument("--no-render", action="store_true", help="show no window")
    parser.add_argument("--stochastic", action="store_true", help="explore, as in training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust", action="store_true", help=TRUST)


def _add_source(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of a command that needs an agent
    """
    parser.epilog = (
        "RUN is a folder that `train` has written. FILE is a .safetensors file of this package, or a .zip that save()\n"
        "has written, which needs --trust, --algo and --env. Without either, --algo and --env choose one of the zoo.\n"
        "A .zip does not hold the statistics of VecNormalize, with which an agent may have been trained: save_agent\n"
        "writes a .safetensors file that does."
    )
    parser.add_argument("agent", nargs="?", metavar="RUN or FILE", help="the agent (default: one of the zoo)")
    parser.add_argument("--algo", help="its method, such as tdmpc2")
    parser.add_argument("--env", help="its environment, such as dmc/walker-walk-v0")
    parser.add_argument("--best", action="store_true", help="of a run, the agent of the best evaluation")
    parser.add_argument("--episodes", type=int, help="number of episodes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust", action="store_true", help=TRUST)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``evaluate``
    """
    _add_source(parser)
    parser.set_defaults(episodes=10)
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="SET or ID",
        help="of an agent of several tasks (FILE), the score in each: 100 x success at the last step, or return / 10",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("tasks.csv"),
        help="table of --tasks, with a picture beside it (default: tasks.csv)",
    )
    parser.add_argument("--actor", action="store_true", help="also evaluate the network policy, without planning")
    parser.add_argument("--n-envs", type=int, help="environments side by side (default: as many as episodes, up to 10)")


def add_finetune(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``finetune``
    """
    parser.epilog = (
        "The agent gains the task of ENV, whose embedding begins as that of TASK, and learns it alone: all weights\n"
        "are trained, with an empty replay buffer and no random actions. A task that it has learned before is\n"
        "refused. FOLDER/METHOD-ENV_SEED has the agent (agent.safetensors) and evaluations.csv.\n\n"
        "Without --preset: 10,000 decisions with the agent's own settings. finetune: 10,000, the 20,000 frames of\n"
        "TD-MPC2's few-shot experiment; o2o: 40,000, MBDPO's from offline to online; small: 10,000, for one\n"
        "CPU core. All update after every decision, by batches of 256 or (small) 64.\n\n"
        "example: python -m sb3_mpc.zoo finetune mt70.safetensors --env dmc/walker-run-v0 --like walker-walk"
    )
    parser.add_argument("agent", metavar="FILE", help="agent of several tasks: .safetensors, or .zip with --algo")
    parser.add_argument("--env", required=True, help="the new task, such as dmc/walker-run-v0")
    parser.add_argument(
        "--like", metavar="TASK", help="task of the agent, by name or index (default: the paper's, for its ten tasks)"
    )
    parser.add_argument("--algo", help="method of a .zip file, such as tdmpc2")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument(
        "-n",
        "--n-timesteps",
        type=int,
        help="decisions of the agent (default: those of the preset, or 10000)",
    )
    parser.add_argument("--preset", choices=("finetune", "o2o", "small"), help="settings by name, see below")
    parser.add_argument("--n-envs", type=int, default=1, help="environments side by side (default: 1)")
    parser.add_argument("--eval-freq", type=int, default=2_000, help="decisions between evaluations (default: 2000)")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of an evaluation (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training and of the evaluations (default: 0)")
    parser.add_argument("--folder", type=Path, default=Path("finetuned"), help="where it goes (default: finetuned)")
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    parser.add_argument("--device", default="auto")


def add_record(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``record``
    """
    _add_source(parser)
    parser.set_defaults(episodes=1)
    parser.add_argument("--actor", action="store_true", help="record the network policy, without planning")
    parser.add_argument("--folder", type=Path, default=Path("videos"), help="where the videos go (default: videos)")


def add_publish(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``publish``
    """
    _add_source(parser)
    parser.set_defaults(episodes=10)
    parser.add_argument("--folder", type=Path, default=Path("agents"), help="where the files go (default: agents)")
    parser.add_argument("--curve", type=Path, metavar="CSV", help="evaluations to draw (default: those of the run)")
    parser.add_argument(
        "--preset", help="reduced preset that it was trained with, for the card (default: that of the run)"
    )
    parser.add_argument(
        "--trained-by",
        metavar="COMMAND",
        help="command that trains such an agent, for the card (default: that of the run)",
    )
    parser.add_argument("--no-film", action="store_true", help="write no video, which needs OpenGL")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="precision of the weights")


def add_plot(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``plot``
    """
    parser.epilog = (
        "Bands are 95 % bootstrap intervals of the mean over seeds. Published curves (dashed) are points 100,000\n"
        "frames apart, joined by straight lines: returns for DMControl and HumanoidBench, successes for Meta-World\n"
        "and MyoSuite. Beside PICTURE.png there will be PICTURE.csv;\n"
        "--aggregate adds PICTURE-aggregate.png and .csv with interquartile means and performance profiles.\n\n"
        "example: python -m sb3_mpc.zoo plot logs --output curves.png --aggregate"
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="folders with runs, and CSV files")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="picture (default: curves.png)")
    parser.add_argument("--success", action="store_true", help="draw success rates instead of returns")
    parser.add_argument("--episodes", action="store_true", help="also draw the single training episodes, as dots")
    parser.add_argument("--no-published", action="store_true", help="leave the published curves out")
    parser.add_argument("--aggregate", action="store_true", help="also aggregate over tasks and seeds")
    parser.add_argument("--full-return", type=float, default=1_000.0, help="return that aggregates count as 1")


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``benchmark``
    """
    parser.epilog = BENCHMARK
    parser.add_argument("--suite", nargs="+", choices=list(SUITES), default=[], help="sets of tasks")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="ID", help="single tasks, instead or in addition")
    parser.add_argument("--algo", nargs="+", default=["tdmpc2"], help='methods, or "sac" (default: tdmpc2)')
    parser.add_argument("--preset", default="", help='reduced preset of the methods, such as "small"; not for sac')
    parser.add_argument("-params", "--hyperparams", nargs="+", metavar="NAME:VALUE", help="single settings to change")
    parser.add_argument("--label", default="", metavar="NAME", help="name of what -params changes, in the results")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default: 1)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--frames", type=int, default=100_000, help="simulator frames of a run (default: 100000)")
    parser.add_argument(
        "--eval-frames", type=int, default=10_000, help="simulator frames between evaluations (default: 10000)"
    )
    parser.add_argument("--episodes", type=int, default=10, help="episodes of an evaluation (default: 10)")
    parser.add_argument("--folder", type=Path, default=Path("benchmark"), help="the queue (default: benchmark)")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: 1; on Ray as many as it can)")
    parser.add_argument(
        "--launcher", choices=("local", "ray"), default="local", help="processes here, or tasks of a Ray cluster"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default: 1)")
    parser.add_argument("--device", default="cpu", help="device of the runs (default: cpu)")
    parser.add_argument("--nice", type=int, default=10, help="niceness that is added to the runs (default: 10)")
    parser.add_argument("--save-data", action="store_true", help="keep the replay buffers of finished runs")
    parser.add_argument("--status", action="store_true", help="print the state of the queue and the time left")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and how long they will take")
    parser.add_argument("--run", type=Path, metavar="RUN", help="do one run of a queue in this process, and no other")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``doctor``
    """
    parser.epilog = (
        "The times are estimates for TDMPC2: a few plans and updates of each preset are measured on an environment\n"
        "that costs nothing, without compilation, on the machine as busy as it is. `bench` measures at length."
    )
    parser.add_argument("--quick", action="store_true", help="measure nothing and make no environments")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--device", default="auto", help="device to measure on (default: auto)")


def add_report(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser of ``report``
    """
    parser.epilog = (
        "report.md has a table of single tasks for each set of tasks. Where these have a common scale (DMControl, and\n"
        "suites whose metric is success) it adds the mean and the interquartile mean over them, with stratified\n"
        "bootstrap intervals, performance profiles, and curves against simulator frames and minutes of one core.\n"
        "Published curves begin with their first published point.\n\n"
        "example: python -m sb3_mpc.zoo report dmc32 --output report"
    )
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="FOLDER", help="folders of `benchmark`, or results.csv"
    )
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write to (default: report)")
    parser.add_argument("--no-published", action="store_true", help="leave the published curves out")
