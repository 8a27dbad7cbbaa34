"""
What each of two processes does in tests/common/test_processes.py, and one process alone, to compare with:
``python -m tests.support.two_processes FOLDER``, with the environment variables of torchrun.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_mpc import BMPC, MBDPO, TDMPC2, FacTDMPC, TDMPCSquare
from sb3_mpc.common import processes
from sb3_mpc.common.buffers.sequence_buffer import SequenceBatch
from tests.support.agents import PointEnv, make_agent, vec

BATCH, UPDATES = 12, 20  # a size that no other dimension has
METHODS: dict[Any, dict[str, Any]] = {
    TDMPC2: dict(policy_kwargs=dict(normalize_observations=True)),
    TDMPCSquare: dict(scale_threshold=0.0),
    BMPC: dict(td_horizon=2),
    MBDPO: dict(use_score_network=True, score_samples=5),
    FacTDMPC: dict(num_candidates=5),
}


def windows(horizon: int) -> SequenceBatch:
    """:return: a batch of the environment's sizes, the same in all processes"""
    generator = th.Generator().manual_seed(horizon)

    def normal(*shape: int) -> th.Tensor:
        return th.randn(shape, generator=generator)

    ends = (th.rand(BATCH, generator=generator) * (horizon + 1)).long()
    mask = (th.arange(horizon).unsqueeze(1) <= ends).float().unsqueeze(-1)
    terminated = (th.arange(horizon).unsqueeze(1) == ends).float().unsqueeze(-1)
    plans = th.stack([normal(horizon, BATCH, 2).tanh(), normal(horizon, BATCH, 2).exp()])
    observations, actions = normal(horizon + 1, BATCH, 3), normal(horizon, BATCH, 2).tanh()
    return SequenceBatch(observations, actions, 5 * normal(horizon, BATCH, 1), terminated, mask, plans)


def part_of(x: Any) -> Any:
    """:return: what this process gets of tensors, in any nesting: half of each dimension of the size of the batch"""
    if isinstance(x, dict):
        return {name: part_of(value) for name, value in x.items()}
    if isinstance(x, tuple):
        return type(x)(*map(part_of, x))
    if not isinstance(x, th.Tensor) or BATCH not in x.shape or not processes.joined():
        return x
    axis, size = x.shape.index(BATCH), BATCH // processes.size()
    return x.narrow(axis, processes.rank() * size, size)


def updated(algorithm: Any) -> dict[str, th.Tensor]:
    """:return: parameters of a new agent after some updates on the same windows with the same draws"""
    model = make_agent(algorithm, PointEnv(), seed=0, episodic=True, learning_rate=3e-3, **METHODS[algorithm])
    processes.join(model.device)
    model.keep_together(UPDATES)
    model.policy.seed(1)
    model.policy.set_training_mode(True)
    for _ in range(UPDATES):
        model.update(part_of(windows(2)), part_of(model.draw_noise(BATCH)))
    if algorithm is FacTDMPC:
        generator = th.Generator().manual_seed(2)
        for _ in range(UPDATES):
            noise = model.draw_distill_noise(BATCH, generator)
            model.distill_update(part_of(windows(3)), part_of(noise))
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


class Counter(BaseCallback):
    """Counts its calls."""

    calls = 0

    def _on_step(self) -> bool:
        self.calls += 1
        return True


def learned(folder: Path) -> dict[str, Any]:
    """:return: what a process sees of an online training together; episodes terminate in the last process alone"""
    terminates = processes.rank() == processes.size() - 1
    env = vec(lambda: PointEnv(6, terminate=terminates), seed=None)
    model = make_agent(TDMPC2, env, seed=3, verbose=1, pretrain_gradient_steps=2)
    counter = Counter()
    first = env.reset()
    model.learn(24, counter)
    model.save(folder / "agent.zip")
    model.save_replay_buffer(folder / "buffer.pkl")
    processes.greatest(0.0)  # the first one has written
    resumed = TDMPC2.load(folder / "agent.zip", env)
    resumed.load_replay_buffer(folder / "buffer.pkl")
    rows = resumed.replay_buffer.sample(16).actions
    resumed.learn(6, reset_num_timesteps=False)
    return dict(
        resumed={name: value.clone() for name, value in resumed.policy.state_dict().items()},
        resumed_rows=rows,
        resumed_updates=resumed._n_updates - model._n_updates,
        state={name: value.clone() for name, value in model.policy.state_dict().items()},
        calls=counter.calls,
        first=th.as_tensor(first),
        batch=model.replay_buffer.sample(4).observations,
        logs=[type(out).__name__ for out in model.logger.output_formats],
    )


def refused() -> list[str]:
    """:return: messages of what does not work together"""
    messages = []
    model = make_agent(TDMPC2, PointEnv(), seed=0)
    for call in (lambda: processes.share(5), lambda: model.keep_together(processes.rank())):
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    return messages


def main(folder: Path) -> None:
    """:param folder: where each process writes what it has found"""
    rank = int(os.environ["RANK"])
    found = dict(updated={cls.__name__: updated(cls) for cls in METHODS}, learned=learned(folder), refused=refused())
    th.save(found, folder / f"{rank}.pt")
    processes.greatest(0.0)
    if rank == 1:
        os._exit(9)  # as if it was killed
    processes.average([th.zeros(3)])


if __name__ == "__main__":
    th.set_num_threads(1)
    main(Path(sys.argv[1]))
