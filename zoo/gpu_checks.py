"""The parts of ``python -m sb3_mpc.zoo gpu``: what is verified and measured on a GPU, each in a process of its own."""

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from torch.utils._pytree import tree_map_only

import sb3_mpc
import sb3_mpc.envs
from sb3_mpc import FacTDMPC
from sb3_mpc.common.execution.acceleration import Acceleration
from sb3_mpc.common.execution.cuda_graphs import WARM_UP_CALLS, CudaRuntime
from sb3_mpc.zoo.bench import IdleEnv, decisions_per_second, machine, summary, timed

Facts = dict[str, Any]
Write = Callable[[Facts], None]

# How plans and updates are executed. "compiled graph" is what compile=True does; "auto" is the default, eager with TF32
MODES = ("eager", "auto", "graph", "compiled", "compiled graph", "reduce-overhead")
RECORDED = ("graph", "compiled graph")
UPDATES = WARM_UP_CALLS + 5
FILLED = 300  # transitions in the replay buffer
DECISIONS, EVALUATIONS, EPISODES = 50_000, 10, 5
IMAGE = (9, 64, 64)
TESTS = ("tests",)
TEST_MINUTES = 170
SMALL: Facts = dict(horizon=2, num_samples=16, num_elites=4, num_pi_trajs=2, iterations=1, batch_size=16)
SMALL_POLICY: Facts = dict(latent_dim=16, net_arch=[16], num_q=2, num_bins=11)
ROOT = Path(__file__).resolve().parents[1]


class Work(NamedTuple):
    """
    What a part does.

    :param device: device that is verified
    :param folder: where its files go
    :param small: tiny networks, few repetitions and no compiler, to try the program itself
    :param method: name of the class
    :param mode: one of ``MODES``
    :param images: whether observations are images
    """

    device: str
    folder: Path
    small: bool = False
    method: str = "TDMPC2"
    mode: str = "eager"
    images: bool = False


class DriftEnv(IdleEnv):
    """An environment in which observations and rewards depend on the actions."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """See Gymnasium."""
        _, _, terminated, truncated, info = super().step(action)
        phase = np.arange(len(self._observation), dtype=np.float32)
        observation = np.sin(phase + 0.1 * self._step + float(np.mean(action)), dtype=np.float32)
        return observation, 1 - float(np.square(action).mean()), terminated, truncated, info


class ImageEnv(IdleEnv):
    """An environment of images that takes almost no time."""

    def __init__(self) -> None:
        super().__init__(1, 6)
        self.observation_space = spaces.Box(0, 255, IMAGE, np.uint8)
        self._observation: Any = np.random.default_rng(0).integers(0, 256, IMAGE, dtype=np.uint8)


@contextmanager
def execution(work: Work) -> Iterator[list[float]]:
    """
    :param work: mode of execution
    :return: context in which ``compile=True`` means that mode; the seconds that each recording has taken
    """
    seconds: list[float] = []
    compile_, record = th.compile, CudaRuntime.record

    def timed_record(*args: Any) -> Any:
        started = time.perf_counter()
        result = record(*args)
        seconds.append(round(time.perf_counter() - started, 2))
        return result

    def without_overhead(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = compile_(function, mode="reduce-overhead", **options)

        def call(*args: Any) -> Any:  # the next call overwrites its results
            th.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return tree_map_only(th.Tensor, th.Tensor.clone, compiled(*args))

        return call

    with ExitStack() as stack:
        if work.mode == "graph" or work.small:
            stack.enter_context(patch.object(th, "compile", lambda function, **_: function))
        elif work.mode == "reduce-overhead":
            stack.enter_context(patch.object(th, "compile", without_overhead))
        if work.mode not in RECORDED:
            stack.enter_context(patch.object(CudaRuntime, "applies", lambda self, tensor: False))
        stack.enter_context(patch.object(CudaRuntime, "record", timed_record))
        yield seconds


def make_agent(work: Work, env: gym.Env, **given: Any) -> Any:
    """
    :param work: method, and whether it is small
    :param env: environment
    :param given: arguments
    :return: agent with the papers' settings
    """
    sizes: Facts = dict(SMALL, policy_kwargs=SMALL_POLICY) if work.small else {}
    arguments = {**sizes, **dict(pretrain_gradient_steps=0, seed=0, device=work.device), **given}
    if work.method == "FacTDMPC":
        arguments["distill_steps"] = 0
    policy = "CnnPolicy" if work.images else "MlpPolicy"
    return getattr(sb3_mpc, work.method)(policy, env, **arguments)


def switch(model: Any, work: Work) -> None:
    """
    :param model: agent, which so far was eager
    :param work: how it is executed from now on; in float32, but for "auto"
    """
    compiles = work.mode not in ("eager", "auto")
    model.policy.acceleration = Acceleration(compiles=compiles, bfloat16=False, tf32=work.mode == "auto")


def about(work: Work, write: Write) -> None:
    """The machine, and its GPUs."""
    found = machine(work.device)
    if th.cuda.is_available():
        for index in range(th.cuda.device_count()):
            properties = th.cuda.get_device_properties(index)
            found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        found["cuda"] = th.version.cuda
    write(found)


def equal(work: Work, write: Write) -> None:
    """Updates and plans of an agent, from the same data and random numbers in every mode; kept in a file."""
    own: Facts = dict(reanalyze_interval=2) if work.method == "BMPC" else {}
    filled = 20 if work.small else FILLED
    model = make_agent(work, DriftEnv(24, 6), compile=False, learning_starts=filled, learning_rate=1e-4, **own)
    model.learn(filled)
    model.policy.seed(0)
    model.replay_buffer.seed(0)
    switch(model, work)
    losses: list[list[float]] = []
    with execution(work) as seconds, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(UPDATES):
            model.train(1)
            log = model.logger.name_to_value
            losses.append([float(log[name]) for name in sorted(log) if name.endswith("_loss")])
        if isinstance(model, FacTDMPC):
            model._distill(UPDATES, model._init_callback(None), None, False)
        observations = np.random.default_rng(0).uniform(-1, 1, (4, 24)).astype(np.float32)
        plans = [
            [part.cpu().numpy() for part in model.policy.plan_batch(observations, deterministic=deterministic)[0]]
            for deterministic in (False, True)
            for _ in range(UPDATES)
        ]
    values, actions = (np.stack([plan[index] for plan in plans]) for index in (4, 3))
    parameters = np.concatenate([p.detach().cpu().numpy().ravel() for p in model.policy.parameters()])
    work.folder.mkdir(parents=True, exist_ok=True)
    file = work.folder / f"{work.method}-{work.mode.replace(' ', '-')}.npz"
    np.savez(file, losses=np.array(losses), returns=values, actions=actions, parameters=parameters)
    said = [str(warning.message) for warning in caught if "CUDA graph" in str(warning.message)]
    write(dict(file=file.name, recordings=len(seconds), recording_s=seconds, **({"warnings": said} if said else {})))
    if work.mode in RECORDED and model.device.type == "cuda" and not seconds:
        raise RuntimeError("No plan and no update was recorded.")


def speed(work: Work, write: Write) -> None:
    """Times of plans and updates, decisions per second, and memory."""
    repeats, filled = (2, 20) if work.small else (50, FILLED)
    compile_ = {"eager": False, "auto": "auto"}.get(work.mode, True)
    env = ImageEnv() if work.images else IdleEnv(24, 6)
    settings: Facts = dict(compile=compile_, buffer_size=2_000)
    found: Facts = {}
    with execution(work) as seconds:
        model = make_agent(work, env, learning_starts=filled, **settings).learn(filled)
        if isinstance(model, FacTDMPC):
            model._distill(1 if work.small else UPDATES, model._init_callback(None), None, False)
        started = time.perf_counter()
        model.predict(env.reset()[0])
        model.train(1)
        found["first_plan_and_update_s"] = round(time.perf_counter() - started, 1)
        found["update"] = summary(timed(lambda: model.train(1), model.device, repeats))
        write(found)
        rng, space = np.random.default_rng(0), model.observation_space
        for n_envs in (1, 16, 64, 1024)[: 2 if work.small or work.images else 4]:
            observations = rng.uniform(0, 1, (n_envs, *space.shape)).astype(space.dtype)
            plan = partial(model.policy.predict, observations, deterministic=True)
            found[f"plan of {n_envs}"] = summary(timed(plan, model.device, repeats))
            if model.device.type == "cuda":
                found["peak_cuda_mb"] = round(th.cuda.max_memory_allocated(model.device) / 2**20)
            write(found)
        if work.method == "TDMPC2" and not work.images and not work.small:
            found["decisions_per_s"] = decisions_per_second(
                IdleEnv(24, 6), dict(settings, device=work.device, seed=0, pretrain_gradient_steps=0), 200
            )
        write(dict(found, recordings=len(seconds)))


class Curve(BaseCallback):
    """
    Writes the returns after each evaluation.

    :param write: takes what is known so far
    :param found: facts about the training, which the curve is added to
    """

    parent: EvalCallback

    def __init__(self, write: Write, found: Facts) -> None:
        super().__init__()
        self.write, self.found, self.started = write, found, time.perf_counter()

    def _on_step(self) -> bool:
        self.found.setdefault("curve", []).append(
            dict(
                decisions=self.num_timesteps,
                mean_return=round(float(self.parent.last_mean_reward), 1),
                seconds=round(time.perf_counter() - self.started),
            )
        )
        self.write(self.found)
        return True


def training(work: Work, write: Write) -> None:
    """A training of 50,000 decisions with the paper's settings and ``compile=True``; its curve."""
    env_id = "Pendulum-v1" if work.small or find_spec("dm_control") is None else "dmc/walker-walk-v0"
    decisions, starts, episodes = (60, 20, 1) if work.small else (DECISIONS, "auto", EPISODES)
    found: Facts = dict(env=env_id, decisions=decisions, compile=True, seed=0)
    evaluation = EvalCallback(
        Monitor(gym.make(env_id, max_episode_steps=20 if work.small else None)),
        callback_after_eval=Curve(write, found),
        n_eval_episodes=episodes,
        eval_freq=decisions // EVALUATIONS,
        verbose=0,
    )
    with execution(work._replace(mode="compiled graph")) as seconds:
        model = make_agent(work, gym.make(env_id), compile=True, learning_starts=starts, pretrain_gradient_steps="auto")
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The run will take")
            model.learn(decisions, callback=evaluation)
        took = time.perf_counter() - started
    found |= dict(seconds=round(took), decisions_per_s=round(decisions / took, 1), recordings=len(seconds))
    write(found)


def tests(work: Work, write: Write) -> None:
    """All tests of the package, with the agents on the device."""
    if not (ROOT / "tests").is_dir():
        raise FileNotFoundError("The tests are in a clone of the repository only: run `make gpu` there.")
    file = (work.folder / "tests.xml").resolve()
    environment = {**os.environ, "SB3_MPC_TEST_DEVICE": work.device, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *TESTS, "-q", "-p", "no:cacheprovider", f"--junitxml={file}"]
    work.folder.mkdir(parents=True, exist_ok=True)
    with open(work.folder / "tests.txt", "w") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=60 * TEST_MINUTES)
    cases = list(ElementTree.parse(file).iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    write(dict(status=done.returncode, tests=len(cases), skipped=skipped, failed=failed))
