"""The page of moving pictures: the best agent of each task at work, by suite."""

import itertools
from collections.abc import Iterator
from typing import Any

from sb3_mpc.envs import SUITES
from sb3_mpc.zoo.card_facts import class_name, environment_of, frames_of, returns_of

COLUMNS = 3

PAGE = """# Gallery

One episode of a trained agent of each task, of the method with the highest return. Returns are those of the
evaluations on the cards, to which the names lead, not of the episodes that are shown. [All agents](README.md).

{suites}
Generated from the agent files by `python -m sb3_mpc.zoo.cards`.
"""


def suite_of(env_id: str) -> str:
    """
    :param env_id: id of an environment
    :return: title of its suite
    """
    prefix, slash, _ = env_id.partition("/")
    return SUITES[prefix].title if prefix in SUITES else prefix if slash else "Gymnasium"


def best_of_each_task(cards: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    :param cards: cards of agents by name
    :return: names and cards, in the order of the environments' ids
    """

    def task(item: tuple[str, dict[str, Any]]) -> str:
        return environment_of(item[1])

    def mean_return(item: tuple[str, dict[str, Any]]) -> float:
        return float((item[1]["evaluation"] or {}).get("mean_return", float("-inf")))

    for _, agents in itertools.groupby(sorted(cards.items(), key=task), task):
        yield max(agents, key=mean_return)


def page(cards: dict[str, dict[str, Any]]) -> str:
    """
    :param cards: cards, by name, of the agents of which there is a moving picture
    :return: the page in Markdown
    """
    cells: dict[str, list[tuple[str, str]]] = {}
    for name, card in best_of_each_task(cards):
        env_id = environment_of(card)
        picture = f"![{class_name(card)} on {env_id}](checkpoints/{name}.gif)"
        caption = (
            f"[{env_id}](checkpoints/{name}.md): {class_name(card)}, {returns_of(card)[0]}, {frames_of(card)} frames"
        )
        cells.setdefault(suite_of(env_id), []).append((picture, caption))
    text = ""
    for suite, found in cells.items():
        text += f"## {suite}\n\n"
        for begin in range(0, len(found), COLUMNS):
            row = found[begin : begin + COLUMNS]
            lines = [[picture for picture, _ in row], ["---"] * len(row), [caption for _, caption in row]]
            text += "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
    return PAGE.format(suites=text)
