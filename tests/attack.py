"""
The long campaign against the package, whose short version is in the tests: ``python -m tests.attack PART ... [-n N]``.

Each attack is drawn from a seed, so that one that is not survived can be tried again: ``--seed``. Survived means: what
was asked for is done, or refused by one clear sentence; nothing is executed, nothing hangs, nothing is lost.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

import sb3_mpc
from sb3_mpc import TDMPC2
from sb3_mpc.agents import load_agent, read_card, save_agent
from sb3_mpc.agents.agent_format import _digest
from sb3_mpc.zoo.resume import ResumableCheckpoint
from tests.support.agents import PointEnv, assert_same_state, make_agent, vec

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**40,
    1e300,
    float("nan"),
    "",
    "x" * 10_000,
    "os.system",
    "../../x",
    "a\x1b[2J",
)
ODD += ("`|<script>", [], {}, [[]], {"class": "os.system"}, [1, "step"], {"": None}, "lin_1", "auto", 0.5)
SECONDS = 30.0  # longest time that an attack may take


class Lost(AssertionError):
    """An attack that was not survived."""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """:return: context in which only clear refusals may be raised, in time and with little memory"""
    begin = time.monotonic()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, FileNotFoundError, BlockingIOError, MemoryError) as error:
        message = str(error)
        if not message.strip() or "\n" in message.strip() or len(message) > 1_000:
            raise Lost(f"no clear sentence: {type(error).__name__}: {message[:300]!r}") from error
    if Path("executed").exists():
        raise Lost("something was executed")
    if time.monotonic() - begin > SECONDS:
        raise Lost(f"it took {time.monotonic() - begin:.0f} s")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory > 2**20:  # kilobytes
        raise Lost("it took more than a gigabyte")


def mutated(value: Any, rng: np.random.Generator) -> Any:
    """:return: a copy of nested plain data with one entry replaced, removed or added"""
    value = copy.deepcopy(value)
    holders: list[Any] = []

    def collect(part: Any) -> None:
        if isinstance(part, (dict, list)) and part:
            holders.append(part)
            for item in part.values() if isinstance(part, dict) else part:
                collect(item)

    collect(value)
    holder = holders[rng.integers(len(holders))]
    key = list(holder)[rng.integers(len(holder))] if isinstance(holder, dict) else int(rng.integers(len(holder)))
    kind = rng.integers(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{key}_"] = ODD[rng.integers(len(ODD))]
    elif kind == 2 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * int(10 ** rng.integers(1, 7))
    else:
        holder[key] = ODD[rng.integers(len(ODD))]
    return value


def agent_file() -> Path:
    """:return: a small agent file, made once"""
    path = Path("agent.safetensors")
    if not path.exists():
        save_agent(make_agent(TDMPC2, PointEnv()).learn(12), path, environment="Pendulum-v1", evaluation={})
    return path


def attack_agents(rng: np.random.Generator) -> None:
    """An agent file with bits flipped, bytes lost or doubled, or cut."""
    data = bytearray(agent_file().read_bytes())
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 4_000)))
        kind = rng.integers(4)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 100))]
        elif kind == 2:
            data[at:at] = data[at : at + int(rng.integers(1, 100))]
        else:
            data[at:] = rng.bytes(int(rng.integers(100)))
        data = data or bytearray(b"x")
    Path("bad.safetensors").write_bytes(data)
    with guarded():
        load_agent("bad.safetensors")
        if bytes(data) != agent_file().read_bytes():
            raise Lost("a damaged file was loaded")


def attack_cards(rng: np.random.Generator) -> None:
    """A card with odd entries, whose checksum fits: loaded, used, listed, and written as a page."""
    from safetensors.numpy import load_file, save_file

    from sb3_mpc.zoo import cards

    tensors, card = load_file(agent_file()), read_card(agent_file())
    del card["sha256"]
    for _ in range(rng.integers(1, 3)):
        card = mutated(card, rng)
    card["sha256"] = _digest(card, {name: th.from_numpy(value) for name, value in tensors.items()})
    folder = Path("cards")
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "bad.safetensors", {"sb3_mpc": json.dumps(card)})
    with guarded():
        with contextlib.redirect_stderr(io.StringIO()):
            found = cards.read_cards(folder)
        for one in found.values():
            text = cards.card_text(one) + cards.table({"bad": one})
            if any(ord(letter) < 32 and letter != "\n" for letter in text):
                raise Lost("control characters in a page")
        model = load_agent(folder / "bad.safetensors")
        model.predict(np.zeros(3, np.float32))


def attack_arguments(rng: np.random.Generator) -> None:
    """An agent with one odd argument: refused when it is made, or it learns."""
    import inspect

    cls = list(sb3_mpc.ALGORITHMS.values())[rng.integers(len(sb3_mpc.ALGORITHMS))]
    policy = rng.random() < 0.3
    target: Any = cls.policy_aliases["MlpPolicy"] if policy else cls
    names = [n for n in inspect.signature(target).parameters if n not in ("policy", "env", "unknown", "kwargs", "self")]
    names = [
        n for n in names if n not in ("observation_space", "action_space", "lr_schedule", "tensorboard_log", "compile")
    ]
    name, value = names[rng.integers(len(names))], ODD[rng.integers(len(ODD))]
    given: dict[str, Any] = {"policy_kwargs": {name: value}} if policy else {name: value}
    made = False
    try:
        with guarded():
            model = make_agent(cls, PointEnv(), **given)
            made = True
            if value != 2**40:  # as many updates as that are allowed, and take their time
                model.learn(12)
    except Lost as error:
        raise Lost(f"{cls.__name__}({given!r:.100}): {error}") from error
    except Exception as error:
        where = "in learn()" if made else "in the constructor"
        raise Lost(f"{cls.__name__}({given!r:.100}) {where}: {type(error).__name__}: {error}") from error


def begun(folder: Path) -> None:
    """Make a run with two checkpoints."""
    if not folder.exists():
        make_agent(TDMPC2, vec(lambda: PointEnv(10)), seed=1).learn(40, ResumableCheckpoint(folder, 20))


def attack_checkpoints(rng: np.random.Generator) -> None:
    """A checkpoint with a damaged part: noticed, and the run goes on from the one before."""
    begun(Path("begun"))
    shutil.rmtree("damaged", ignore_errors=True)
    shutil.copytree("begun", "damaged")
    path = [*sorted(Path("damaged/step_40").iterdir())][rng.integers(4)]
    data = bytearray(path.read_bytes())
    kind = rng.integers(3)
    if kind == 0:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data = data[: int(rng.integers(len(data)))]
    path.unlink() if kind == 2 else path.write_bytes(data)
    with guarded():
        checkpoint = ResumableCheckpoint("damaged", 20)
        model = checkpoint.load(TDMPC2, vec(lambda: PointEnv(10)), "cpu")
        untouched = path.name == "checkpoint.json" and model.num_timesteps == 40  # a bit that means nothing
        if model.num_timesteps != 20 and not untouched:
            raise Lost(f"damage of {path.name} went unnoticed")
        model.learn(10, checkpoint, reset_num_timesteps=False)
        checkpoint.close()


RUN = """
import sys
sys.path.insert(0, {root!r})
from sb3_mpc import TDMPC2
from sb3_mpc.zoo.resume import ResumableCheckpoint
from tests.support.agents import PointEnv, make_agent, vec
checkpoint, env = ResumableCheckpoint({folder!r}, 20), vec(lambda: PointEnv(10))
if checkpoint.newest():
    model = checkpoint.load(TDMPC2, env, "cpu")
else:
    model = make_agent(TDMPC2, env, seed=1)
print("go", flush=True)
model.learn(200 - model.num_timesteps, checkpoint, reset_num_timesteps=False)
model.save({folder!r} + "/last.zip")
"""


def attack_kills(rng: np.random.Generator) -> None:
    """A run that is killed at any moment, and resumed: its last agent is that of a run that was not."""
    root = str(Path(__file__).parents[1])
    if not Path("whole").exists():
        subprocess.run([sys.executable, "-c", RUN.format(root=root, folder="whole")], check=True, capture_output=True)
    shutil.rmtree("killed", ignore_errors=True)
    command = [sys.executable, "-c", RUN.format(root=root, folder="killed")]
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(rng.uniform(0, 2)))
            process.send_signal([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM][rng.integers(3)])
    exact = not any(not json.loads(p.read_text())["exact"] for p in Path("killed").glob("step_*/checkpoint.json"))
    subprocess.run(command, check=True, capture_output=True)
    models = [TDMPC2.load(f"{name}/last.zip") for name in ("whole", "killed")]
    if models[1].num_timesteps != 200:
        raise Lost("the run was not finished")
    if exact:
        assert_same_state(models[1].get_parameters(), models[0].get_parameters())


def attack_disk(rng: np.random.Generator) -> None:
    """A disk that is full from some byte on: the training goes on, and what was saved stays whole."""
    root = str(Path(__file__).parents[1])
    limit = int(rng.integers(1_000, 200_000))
    shutil.rmtree("full", ignore_errors=True)
    begin = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    begin += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    program = begin + RUN.format(root=root, folder="full").rpartition("model.save")[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode != 0:
        raise Lost(f"limit {limit}: {done.stderr[-300:]}")
    checkpoint = ResumableCheckpoint("full", 20)
    if checkpoint.newest() is not None:
        with guarded():
            checkpoint.load(TDMPC2, vec(lambda: PointEnv(10)), "cpu")
            checkpoint.close()


def attack_workers(rng: np.random.Generator) -> None:
    """A worker that raises or is killed at some step: named within seconds."""
    from sb3_mpc.zoo.workers import WorkerError, WorkerVecEnv
    from tests.zoo.test_workers import make

    index, at, killed = int(rng.integers(3)), int(rng.integers(1, 20)), rng.random() < 0.5
    env = WorkerVecEnv([lambda i=i: make(at if i == index and not killed else 0) for i in range(3)], "fork")
    begin = time.monotonic()
    try:
        env.reset()
        for step in range(25):
            env.step_async(np.zeros((3, 2), np.float32))
            if killed and step == at:
                os.kill(env.processes[index].pid, signal.SIGKILL)
            env.step_wait()
        raise Lost("nobody noticed")
    except WorkerError as error:
        if f"Environment {index} of 3" not in str(error):
            raise Lost(f"the wrong one is named: {error}") from error
    finally:
        env.close()
    if time.monotonic() - begin > 15 or any(process.is_alive() for process in env.processes):
        raise Lost("it took long, or left processes behind")


def attack_processes(rng: np.random.Generator) -> None:
    """Threads that save one path and read it, and a second process that resumes a run which is in work."""
    model, path, lost = make_agent(TDMPC2, PointEnv()), Path("shared.safetensors"), []
    save_agent(model, path)

    def work(function: Callable[[], Any]) -> None:
        try:
            for _ in range(5):
                function()
        except Exception as error:
            lost.append(error)

    functions = [lambda: save_agent(model, path), lambda: load_agent(path)]
    threads = [threading.Thread(target=work, args=(functions[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if lost:
        raise Lost(f"{type(lost[0]).__name__}: {lost[0]}")
    begun(Path("begun"))
    checkpoint = ResumableCheckpoint("begun", 20)
    checkpoint.hold()
    program = (
        "import sys; sys.path.insert(0, %r); from sb3_mpc.zoo.resume import ResumableCheckpoint as R; R('begun').hold()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program % str(Path(__file__).parents[1])], capture_output=True, text=True
    )
    checkpoint.close()
    if done.returncode == 0 or "Another process works on the run" not in done.stderr:
        raise Lost("two processes hold one run")


def attack_soak(rng: np.random.Generator) -> None:
    """A minute of training, saving and loading; memory does not grow."""
    end, sizes = time.monotonic() + 60, []
    while time.monotonic() < end:
        model = make_agent(TDMPC2, vec(lambda: PointEnv(10)), seed=1).learn(60, ResumableCheckpoint("soak", 20))
        shutil.rmtree("soak")
        model.save("soak.zip")
        TDMPC2.load("soak.zip", env=PointEnv()).learn(20)
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
    if len(sizes) > 4 and sizes[-1] > 1.1 * sizes[len(sizes) // 4]:
        raise Lost(f"memory grows: {sizes[len(sizes) // 4]} to {sizes[-1]} pages")


# Parts of the campaign, and the numbers of attacks in the long version
PARTS: dict[str, tuple[Callable[[np.random.Generator], None], int]] = {
    "agents": (attack_agents, 10_000),
    "cards": (attack_cards, 1_000),
    "arguments": (attack_arguments, 400),
    "checkpoints": (attack_checkpoints, 100),
    "kills": (attack_kills, 100),
    "disk": (attack_disk, 20),
    "workers": (attack_workers, 20),
    "processes": (attack_processes, 20),
    "soak": (attack_soak, 60),
}


def campaign(part: str, count: int, seed: int) -> tuple[int, list[str]]:
    """
    :param part: part of the campaign
    :param count: number of attacks
    :param seed: seed of the first one
    :return: number of attacks that were survived, and what happened in the others
    """
    function, _ = PARTS[part]
    lost = []
    for number in range(seed, seed + count):
        try:
            function(np.random.default_rng(number))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, AssertionError) else traceback.format_exc()
            lost.append(f"{part} --seed {number}: {reason.strip()[-600:]}")
    return count - len(lost), lost


def main() -> int:
    """
    :return: exit status of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], default=[], help="parts of the campaign (default: all)"
    )
    parser.add_argument("-n", type=int, help="number of attacks of each part, instead of that of the long version")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first attack (default: 0)")
    args = parser.parse_args()
    th.set_num_threads(1)
    failed = False
    print("| attack | tried | survived | seconds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for part in args.parts or PARTS:
            begin = time.monotonic()
            count = args.n or PARTS[part][1]
            survived, lost = campaign(part, count, args.seed)
            print(f"| {part} | {count} | {survived} | {time.monotonic() - begin:.0f} |", flush=True)
            for line in lost[:20]:
                print(line, file=sys.stderr, flush=True)
            failed |= bool(lost)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
