"""
The texts beside the trained agents: a model card for each, and the table of all in README.md. Both follow from the
agent files; ``python -m sb3_mpc.zoo.cards`` writes them anew.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import sb3_mpc
from sb3_mpc.agents.agent_format import read_card
from sb3_mpc.zoo.returns import read_csv

FOLDER = Path(__file__).parent
CHECKPOINTS = FOLDER / "checkpoints"
PICTURES = (".png", ".gif", ".mp4")
PROTOCOL = ("action_repeat", "terminates", "max_episode_steps")

README = """# Trained agents

```python
from sb3_mpc import zoo

model = zoo.load("tdmpc2", "dmc/cartpole-swingup-v0")
```

An agent is one `.safetensors` file that holds data only: loading one executes nothing from it. The name of a file leads
to its card, with what reproduces it. Returns are means of deterministic episodes, of the planner and of the network
policy, which acts without planning; the published ones are those of the official code's 5M model (see
[curves](curves/README.md)), at the same number of simulator frames, or at the next that was published.

{table}

This page and the cards are written by `python -m sb3_mpc.zoo.cards` from the headers of the files.
"""


def agent_name(algo: str, env_id: str) -> str:
    """
    :param algo: key of the method
    :param env_id: id of the environment
    :return: name of the file of such an agent, without suffix; it contains no folder
    """
    return f"{algo}-{env_id}".replace("/", "-").replace("\\", "-")


def class_name(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: name of its class
    """
    return sb3_mpc.ALGORITHMS[card["algorithm"]].__name__


def environment_of(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: id of its environment
    """
    return (card["environment"] or {"id": "an environment that its file does not name"})["id"]


def protocol_of(environment: dict[str, Any]) -> dict[str, Any]:
    """
    :param environment: what a card says of its environment
    :return: what ``gym.make`` needs besides the id. Only what says how an episode runs: a file from elsewhere must not
        choose other arguments, such as paths
    """
    given = {**(environment.get("kwargs") or {}), "max_episode_steps": environment.get("max_episode_steps")}
    return {name: given[name] for name in PROTOCOL if isinstance(given.get(name), (int, bool))}


def other_protocol(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: in what its environment runs otherwise than its id alone, nothing if in nothing
    """
    arguments = protocol_of(card["environment"] or {})
    return "".join(f", {name}={value}" for name, value in arguments.items() if name != "max_episode_steps")


def returns_of(card: dict[str, Any]) -> tuple[str, str]:
    """
    :param card: card of an agent
    :return: returns of the planner and of the network policy
    """
    found = card["evaluation"] or {}

    def text(prefix: str) -> str:
        if f"{prefix}mean_return" not in found:
            return "-"
        return f"{found[f'{prefix}mean_return']:.1f} ± {found[f'{prefix}std_return']:.1f}"

    return text(""), text("network_")


def frames_of(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: simulator frames that it was trained for
    """
    frames = (card["steps"] or {}).get("frames")
    return "-" if frames is None else f"{frames:,}"


def published_return(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: mean return of the official code after as many frames, or at the next point that was published
    """
    rows = [
        row
        for row in read_csv(FOLDER / "curves" / "published.csv")
        if (row.method, row.task) == (card["algorithm"], environment_of(card))
        and row.frames >= (card["steps"] or {}).get("frames", np.inf)
    ]
    if not rows:
        return "-"
    frames = min(row.frames for row in rows)
    value = np.mean([row.value for row in rows if row.frames == frames])
    return f"{value:.1f}" if frames == card["steps"]["frames"] else f"{value:.1f} (at {frames:,})"


def training_command(card: dict[str, Any]) -> str | None:
    """
    :param card: card of an agent
    :return: the command line that trains such an agent: ``command`` of the card, or what follows from the preset
    """
    steps, environment = card["steps"] or {}, card["environment"]
    if "command" in card or environment is None or not steps.get("decisions"):
        return card.get("command")
    preset = f" --preset {card['preset']}" if card["preset"] else ""
    command = f"python -m sb3_mpc.zoo train --algo {card['algorithm']} --env {environment['id']}{preset}"
    return f"{command} --seed {card['seed']} -n {steps['decisions']}"


def card_text(card: dict[str, Any], pictures: Iterable[str] = ()) -> str:
    """
    :param card: card of an agent, see :func:`sb3_mpc.agents.agent_format.read_card`
    :param pictures: names of pictures and videos beside it
    :return: model card in Markdown
    """
    env_id, steps, evaluation = environment_of(card), card["steps"] or {}, card["evaluation"] or {}
    planner, network = returns_of(card)
    episodes = f" over {evaluation['episodes']} episodes" if "episodes" in evaluation else ""
    length = (card["environment"] or {}).get("max_episode_steps")
    facts = {
        "Method": f"`{class_name(card)}` of sb3-mpc, `{card['policy']}`",
        "Environment": f"`{env_id}`" + (f", episodes of {length} decisions" if length else "") + other_protocol(card),
        "Training": f"{steps.get('decisions', 0):,} decisions, {frames_of(card)} simulator frames, seed {card['seed']}",
        "Return of the planner": planner + episodes,
        "Return of the network policy": network if network == "-" else network + episodes,
        "Published return at these frames": published_return(card),
        "Observations": "normalised by `VecNormalize`" if card["vec_normalize"] else "as they are",
        "Precision of the weights": card["dtype"],
        "Versions": ", ".join(f"{name} {number}" for name, number in card["versions"].items()),
        "Commit": card["commit"] or "-",
    }
    env = ", env=env" if card["vec_normalize"] or other_protocol(card) else ""
    arguments = "".join(f", {name}={value}" for name, value in protocol_of(card["environment"] or {}).items())
    make = f'import gymnasium as gym\nimport sb3_mpc.envs\n\nenv = gym.make("{env_id}"{arguments})\n' if env else ""
    parts = [
        f"# {class_name(card)} on {env_id}\n",
        "| | |\n|---|---|\n" + "".join(f"| {name} | {fact} |\n" for name, fact in facts.items()),
        *(f"![{name}]({name})\n" for name in pictures),
        "## Use\n",
        f'```python\nfrom sb3_mpc import zoo\n{make}\nmodel = zoo.load("{card["algorithm"]}", "{env_id}"{env})\n```\n',
        "The same call with `repo_id` loads it from a hub repository or a folder.\n",
    ]
    command = training_command(card)
    if command:
        parts += ["## Reproduce\n", f"```\n{command}\n```\n"]
    if card.get("note"):
        parts.append(f"{card['note']}\n")
    parts += ["## Settings\n", f"```json\n{json.dumps(card['arguments'], indent=1)}\n```\n"]
    return "\n".join(parts)


def table(cards: dict[str, dict[str, Any]]) -> str:
    """
    :param cards: cards of agents by the name of their files, without suffix
    :return: table in Markdown
    """
    head = ("agent", "method", "environment", "return", "network policy", "frames", "published")
    rows = [head, ("---",) * len(head)]
    for name, card in cards.items():
        link = f"[{name}](checkpoints/{name}.md)"
        values = (*returns_of(card), frames_of(card), published_return(card))
        rows.append((link, class_name(card), environment_of(card) + other_protocol(card), *values))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def pictures_of(path: Path) -> list[str]:
    """
    :param path: agent file
    :return: names of the pictures and videos beside it
    """
    return sorted(one.name for one in path.parent.glob(f"{path.stem}.*") if one.suffix in PICTURES)


def read_cards(folder: Path = CHECKPOINTS) -> dict[str, dict[str, Any]]:
    """
    :param folder: folder of agent files
    :return: their cards by the name of the file, without suffix
    """
    return {path.stem: read_card(path) for path in sorted(folder.glob("*.safetensors"))}


def texts() -> dict[Path, str]:
    """:return: content of every file that follows from the agent files"""
    cards = read_cards()
    pages = {
        CHECKPOINTS / f"{name}.md": card_text(card, pictures_of(CHECKPOINTS / f"{name}.safetensors"))
        for name, card in cards.items()
    }
    return {FOLDER / "README.md": README.format(table=table(cards)), **pages}


def main() -> None:
    """Command line."""
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
