"""
The texts about the trained agents: a model card for each, the table of all in README.md and the gallery. All are
generated from the headers of the agent files; ``python -m sb3_mpc.zoo.cards`` writes them again.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sb3_mpc.agents.agent_format import is_text, read_card
from sb3_mpc.zoo import gallery
from sb3_mpc.zoo.card_facts import (
    SCORE,
    class_name,
    constructor_call,
    environment_of,
    frames_of,
    other_protocol,
    preset_changes,
    protocol_of,
    published_result,
    python,
    returns_of,
    scores_of,
    training_command,
)

FOLDER = Path(__file__).parent
CHECKPOINTS = FOLDER / "checkpoints"
PICTURES = (".png", ".gif", ".mp4")

README = """# Trained agents

```python
from sb3_mpc import zoo

model = zoo.load("tdmpc2", "dmc/cartpole-swingup-v0")
```

Each agent is one `.safetensors` file that holds data only: loading it executes no code from it. Its name in the table
links to its model card: how it was evaluated, how to use it, and commit, command and all arguments to reproduce it. The
commit is that of the code that wrote the file after the training. [Gallery](GALLERY.md): agents at work.

{changed}

- **return**, **network policy**: mean and standard deviation over deterministic episodes, ten or, where they spread
  widely, fifty (see the card), of the planner and of the policy network alone, which acts without planning.
- **frames**: simulator frames of the training, which are two for each decision of the agent in DMControl.
- **published**: mean return of the method's official code, whose model has five million parameters, after as many
  frames or at the next point that was published ([sources](curves/README.md)).

{table}

Other folders: [presets](presets) (hyper-parameters by method and environment), [studies](studies/README.md) (scripts
and data of the results that the documentation quotes), [benchmarks](benchmarks/README.md) (speed),
[curves](curves/README.md) (published learning curves). `python -m sb3_mpc.zoo --help` lists the commands.

This page and the cards are generated from the headers of the files: `python -m sb3_mpc.zoo.cards`.
"""


def markdown(text: str) -> str:
    """
    :param text: text from a card, which a stranger may have written
    :return: the same, with what Markdown and HTML would interpret escaped
    """
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", text)


def inline(text: str) -> str:
    """
    :param text: text from a card
    :return: the same as code within a line or a table
    """
    text = text.replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def block(text: str, language: str = "") -> str:
    """
    :param text: lines of code, in which there may be text from a card
    :param language: their language
    :return: the same as a block of code, which no line of it ends
    """
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}\n"


def reproduction(card: dict[str, Any]) -> str | None:
    """
    :param card: card of an agent
    :return: how to train such an agent, in Markdown; None if that is not known
    """
    command = training_command(card)
    if command is None:
        return None
    commit, _, changed = (card["commit"] or "").partition("-")
    where = "In a clone of the repository, with the versions above" if commit else "With the versions above"
    where += ", to which changes had been made:" if changed else ":"
    lines = [f"git checkout {commit}", command] if commit else [command]
    return f"{where}\n\n" + block("\n".join(lines))


def preset_sentence(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: a sentence on what its preset sets to another value today, empty if nothing
    """

    def text(value: Any) -> str:
        return "not set" if value is None else inline(python(value))

    try:
        changes = preset_changes(card)
    except ValueError:
        return f"There is no preset {inline(card['preset'])} today."
    values = ", ".join(f"`{name}` was {text(own)} and is {text(now)}" for name, (own, now) in changes.items())
    return f"The preset {inline(card['preset'])} has other values today: {values}." if changes else ""


def normalization_of(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: what normalises its observations
    """
    if card["vec_normalize"]:
        return "normalised by `VecNormalize`"
    own = (card["arguments"].get("policy_kwargs") or {}).get("normalize_observations")
    return "normalised by the agent" if own else "not normalised"


def card_text(card: dict[str, Any], pictures: Iterable[str] = ()) -> str:
    """
    :param card: card of an agent, see :func:`sb3_mpc.agents.agent_format.read_card`
    :param pictures: names of pictures and videos beside it
    :return: model card in Markdown
    """
    env_id, steps, evaluation = environment_of(card), card["steps"] or {}, card["evaluation"] or {}
    planner, network = returns_of(card)
    episodes = "" if evaluation.get("episodes") is None else f" over {evaluation['episodes']} episodes"
    length = (card["environment"] or {}).get("max_episode_steps")
    training, scores = "number of decisions unknown, or none", scores_of(card)
    if decisions := steps.get("decisions", 0):
        training = f"{decisions:,} decisions, {frames_of(card)} simulator frames"
    measured = "return " if evaluation.get("success") is None else ""
    results = {
        "Return of the planner": planner + episodes,
        "Return of the network policy": network if network == "-" else network + episodes,
        f"Published {measured}at these frames": published_result(card),
    }
    if scores:
        each = ", ".join(f"{task} {score:.1f}" for task, score in scores.items())
        results = {f"Scores of the planner{episodes} each": f"{markdown(each)}; mean {planner.removeprefix(SCORE)}"}
    facts = {
        "Method": f"`{class_name(card)}` of sb3-mpc, {inline(card['policy'])}",
        "Environment": f"`{env_id}`" + (f", episodes of {length} decisions" if length else "") + other_protocol(card),
        "Training": f"{training}, seed {card['seed']}",
        **results,
        "Observations": normalization_of(card),
        "Precision of the weights": card["dtype"],
        "Versions": markdown(", ".join(f"{name} {number}" for name, number in card["versions"].items())),
        "Commit": card["commit"] or "-",
    }
    env = ", env=env" if card["vec_normalize"] or other_protocol(card) else ""
    arguments = "".join(f", {name}={value}" for name, value in protocol_of(card["environment"] or {}).items())
    make = f'import gymnasium as gym\nimport sb3_mpc.envs\n\nenv = gym.make("{env_id}"{arguments})\n' if env else ""
    use = f'{make}\nmodel = zoo.load("{card["algorithm"]}", "{env_id}"{env})\n'
    if scores:
        listed = "".join(f"        {json.dumps(task)},\n" for task in scores)
        use = (
            "from sb3_mpc.envs import make_multitask\n"
            f"\nenv = make_multitask(\n    [\n{listed}    ]\n)\n"
            f'model = zoo.load("{card["algorithm"]}", "{env_id}", env=env)\n'
        )
    parts = [
        f"# {class_name(card)} on {env_id}\n",
        "| | |\n|---|---|\n" + "".join(f"| {name} | {fact} |\n" for name, fact in facts.items()),
        *(f"![{name}]({name})\n" for name in pictures),
        "## Use\n",
        block(f"from sb3_mpc import zoo\n{use}".rstrip(), "python"),
        "The same call with `repo_id` loads it from a hub repository or a folder.\n",
    ]
    how, changes = reproduction(card), preset_sentence(card)
    note = markdown(str(card["note"])) if is_text(card.get("note")) else None
    if how or changes or note:
        parts += ["## Reproduce\n", *([how] if how else []), *(f"{text}\n" for text in (changes, note) if text)]
    parts += [
        "## Arguments\n",
        "All arguments of the agent, as a call of today's constructor (`compile` depends on the machine):\n",
    ]
    parts.append(block(constructor_call(card), "python"))
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
        values = (*returns_of(card), frames_of(card), published_result(card))
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
    :return: their cards by the name of the file, without suffix; a file that is none is left out, and said to be
    """
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found[path.stem] = read_card(path)
        except (ValueError, OSError) as error:
            print(f"Left out: {error}", file=sys.stderr)
    return found


def texts() -> dict[Path, str]:
    """:return: content of every file that is generated from the agent files"""
    cards = read_cards()
    pages = {
        CHECKPOINTS / f"{name}.md": card_text(card, pictures_of(CHECKPOINTS / f"{name}.safetensors"))
        for name, card in cards.items()
    }
    changed = sum(bool(preset_changes(card)) for card in cards.values())
    sentence = f"The presets of {changed} of the {len(cards)} have changed since; their cards say what was different."
    moving = {name: card for name, card in cards.items() if (CHECKPOINTS / f"{name}.gif").exists()}
    return {
        FOLDER / "README.md": README.format(table=table(cards), changed=sentence if changed else ""),
        FOLDER / "GALLERY.md": gallery.page(moving),
        **pages,
    }


def main() -> None:
    """Command line."""
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
