"""What is in a data set, in words and as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sb3_mpc.offline.dataset import Dataset

MAX_PANELS = 30  # tasks that get a histogram


def description(data: "Dataset") -> str:
    """
    :param data: data set
    :return: size, spaces, and returns by task
    """
    index, returns = data.episodes, data.returns()
    ends = [int(index["terminated"].sum()), int(index["truncated"].sum())]
    size = sum(path.stat().st_size for path in data.path.iterdir())
    plans = ", with plans" if "plans" in data.columns else ""
    columns = f"{'task':<34} {'episodes':>9} {'steps':>12} {'length':>13}"
    cut = len(index) - sum(ends)
    lines = [
        f"{data.path}: {data.rows:,} transitions in {len(index):,} episodes, {size / 1e6:,.1f} MB{plans}",
        f"source        {data.source}",
        f"observations  {data.observation_space}",
        f"actions       {data.action_space}",
        f"episodes      {ends[0]:,} ended by termination, {ends[1]:,} by a time limit, {cut:,} cut off",
        "",
        f"{columns} {'return: mean':>13} {'std':>9} {'min':>9} {'max':>9}",
    ]
    for number, task in enumerate(data.tasks):
        own = index["task"] == number
        if not own.any():
            continue
        lengths, found = index["length"][own], returns[own]
        span = f"{lengths.min():,}" if lengths.min() == lengths.max() else f"{lengths.min():,}-{lengths.max():,}"
        lines.append(
            f"{task.name:<34} {own.sum():>9,} {lengths.sum():>12,} {span:>13} "
            f"{found.mean():>13.4g} {found.std():>9.4g} {found.min():>9.4g} {found.max():>9.4g}"
        )
    return "\n".join(lines)


def draw(data: "Dataset", path: Path) -> None:
    """
    :param data: data set
    :param path: picture to write: a histogram of the returns of each task, in the order of the tasks
    """
    from matplotlib.figure import Figure

    returns, tasks = data.returns(), np.unique(data.episodes["task"])[:MAX_PANELS]
    columns = min(5, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.8, 2.2 * rows + 0.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).reshape(-1)
    for panel, task in zip(panels, tasks, strict=False):
        panel.hist(returns[data.episodes["task"] == task], bins=30, color="#4477aa")
        panel.set_title(data.tasks[task].name, fontsize=9)
        panel.tick_params(labelsize=8)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    figure.supxlabel("return of an episode", fontsize=9)
    figure.supylabel("episodes", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
