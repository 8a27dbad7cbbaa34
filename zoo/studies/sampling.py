"""
What a batch of a data set costs: ``python -m sb3_mpc.zoo.studies.sampling``.

Windows of 3 transitions are drawn from a data set of 100 million transitions, which is made of holes (a sparse file: it
takes hardly any space, and is read as zeros), and from a replay buffer in memory. Resident memory is that of the whole
process. ``--rows``, ``--batch`` and ``--episode`` change the sizes. At first nothing of the files is in the kernel's
cache, and each page is fetched when it is first touched; ``--warm`` reads all of them before, and takes as much memory
for the cache. Appends a row to ``results/sampling.csv``.
"""

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.offline import Dataset, layout

OBSERVATION, ACTION = spaces.Box(-1, 1, (39,), np.float32), spaces.Box(-1, 1, (6,), np.float32)  # those of mt80
RESULTS = Path(__file__).parent / "results" / "sampling.csv"


def make_sparse(folder: Path, rows: int, length: int) -> Dataset:
    """
    :param folder: folder for the data set
    :param rows: number of transitions
    :param length: number of transitions in an episode
    :return: a data set of zeros
    """
    folder.mkdir()
    count = rows // length
    index = np.zeros(count, layout.EPISODE)
    index["start"], index["length"], index["truncated"] = np.arange(count) * length, length, True
    sizes = dict(observations=rows + count, actions=rows, rewards=rows, episodes=count)
    kinds = {**layout.columns(OBSERVATION, ACTION, False), "episodes": layout.EPISODE}
    files = {}
    for name, row in kinds.items():
        file = files[name] = layout.ColumnFile(folder / f"{name}.npy", row)
        if name == "episodes":
            file.append(index)
        else:
            file.file.truncate(layout.HEADER + sizes[name] * row.itemsize)
            file.rows = sizes[name]
        file.close()
    task = [dict(name="zeros", action_dim=6, episode_length=length)]
    (folder / layout.DESCRIPTION).write_text(layout.describe(OBSERVATION, ACTION, task, "zeros", files))
    return Dataset.load(folder)


def make_buffer(rows: int, length: int) -> SequenceReplayBuffer:
    """
    :param rows: number of transitions
    :param length: number of transitions in an episode
    :return: a full replay buffer
    """
    buffer = SequenceReplayBuffer(rows, OBSERVATION, ACTION, "cpu", horizon=3)
    zeros = np.zeros((1, 39), np.float32), np.zeros((1, 39), np.float32), np.zeros((1, 6)), np.zeros(1)
    for row in range(rows):
        buffer.add(*zeros, np.array([row % length == length - 1]), [{"TimeLimit.truncated": True}])
    return buffer


def resident() -> int:
    """:return: bytes of this process in memory, pages of mapped files included"""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds_of(draw: Callable[[], Any], count: int) -> float:
    """
    :param draw: draws a batch
    :param count: how often
    :return: median of the times
    """
    times = []
    for _ in range(count):
        started = time.perf_counter()
        draw()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--buffer-rows", type=int, default=1_000_000, help="rows of the buffer in memory")
    parser.add_argument("--episode", type=int, default=100)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=1_000)
    parser.add_argument("--warm", action="store_true", help="read all of the files before")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_sparse(Path(folder) / "data", args.rows, args.episode)
        loaded = resident()
        windows = data.windows(3, seed=0)
        if args.warm:
            for path in data.path.glob("*.npy"):
                layout.checksum_of(path)
        of_data = seconds_of(lambda: windows.sample(args.batch), args.batches)
        after = resident()
        buffer = make_buffer(args.buffer_rows, args.episode)
        of_buffer = seconds_of(lambda: buffer.sample(args.batch), args.batches)
    row = dict(rows=args.rows, batch=args.batch, batches=args.batches, warm=args.warm)
    row |= dict(data_ms=round(1e3 * of_data, 3), buffer_ms=round(1e3 * of_buffer, 3))
    row |= dict(ratio=round(of_data / of_buffer, 2), resident_mb=after // 10**6, resident_before_mb=loaded // 10**6)
    print(json.dumps(row))
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
