"""
The texts about the trained agents: a model card for each, and the table of all in README.md. Both are generated from
the headers of the agent files; ``python -m sb3_mpc.zoo.cards`` writes them again.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import LinearSchedule

import sb3_mpc
from sb3_mpc.agents.agent_format import is_text, read_card
from sb3_mpc.zoo.presets import load_preset

FOLDER = Path(__file__).parent
CHECKPOINTS = FOLDER / "checkpoints"
PICTURES = (".png", ".gif", ".mp4")
PROTOCOL = ("action_repeat", "terminates", "max_episode_steps")
SCORE = "score "  # before the name of a task, in the evaluation of an agent of several tasks

README = """# Trained agents

```python
from sb3_mpc import zoo

model = zoo.load("tdmpc2", "dmc/cartpole-swingup-v0")
```

Each agent is one `.safetensors` file that holds data only: loading it executes no code from it. Its name in the table
links to its model card: how it was evaluated, how to use it, and commit, command and all arguments to reproduce it. The
commit is that of the code that wrote the file after the training.

{changed}

- **return**, **network policy**: mean and standard deviation over deterministic episodes, of the planner and of the
  policy network alone, which acts without planning.
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
    :return: arguments of ``gym.make`` besides the id. Only those that define the protocol of an episode: a file from
        an unknown source must not choose others, such as paths
    """
    given = {**(environment.get("kwargs") or {}), "max_episode_steps": environment.get("max_episode_steps")}
    return {name: given[name] for name in PROTOCOL if isinstance(given.get(name), (int, bool))}


def other_protocol(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: settings of its environment that differ from the defaults of its id, as continuation of a sentence
    """
    arguments = protocol_of(card["environment"] or {})
    return "".join(f", {name}={value}" for name, value in arguments.items() if name != "max_episode_steps")


def scores_of(card: dict[str, Any]) -> dict[str, float]:
    """
    :param card: card of an agent
    :return: score of each task, from 0 to 100; none if the agent has one task
    """
    found = card["evaluation"] or {}
    return {
        name.removeprefix(SCORE): value for name, value in found.items() if name.startswith(SCORE) and value is not None
    }


def returns_of(card: dict[str, Any]) -> tuple[str, str]:
    """
    :param card: card of an agent
    :return: returns of the planner and of the network policy; of an agent of several tasks the planner's mean score
    """
    found, scores = card["evaluation"] or {}, scores_of(card).values()
    if scores:
        return f"score {sum(scores) / len(scores):.1f}", "-"

    def text(prefix: str) -> str:
        if f"{prefix}mean_return" not in found:
            return "-"
        spread = found.get(f"{prefix}std_return")
        return f"{found[f'{prefix}mean_return']:.1f}" + ("" if spread is None else f" ± {spread:.1f}")

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
    from sb3_mpc.zoo.returns import read_published  # pandas, which not every command needs

    frames, rows = (card["steps"] or {}).get("frames"), read_published()
    if frames is None:
        return "-"
    rows = rows[(rows["method"] == card["algorithm"]) & (rows["task"] == environment_of(card))]
    rows = rows[rows["frames"] >= frames]
    if rows.empty:
        return "-"
    point = rows["frames"].min()
    value = rows["return"][rows["frames"] == point].mean()
    return f"{value:.1f}" if point == frames else f"{value:.1f} (at {point:,})"


def training_command(card: dict[str, Any]) -> str | None:
    """
    :param card: card of an agent
    :return: command line that trains such an agent: ``command`` of the card, or what follows from its preset; None if
        neither is known
    """
    steps, environment = card["steps"] or {}, card["environment"]
    if "command" in card or environment is None or not steps.get("decisions") or scores_of(card):
        return harmless(card.get("command"))
    preset = f" --preset {shlex.quote(card['preset'])}" if card["preset"] else ""
    command = f"python -m sb3_mpc.zoo train --algo {card['algorithm']} --env {environment['id']}{preset}"
    return f"{command} --seed {card['seed']} -n {steps['decisions']}"


def harmless(command: str | None) -> str | None:
    """
    :param command: command lines from a card, which somebody may copy
    :return: the same, in which a shell finds commands of this package and nothing else; None if there is another one
    """
    try:
        lines = [shlex.split(line) for line in (command or "").splitlines()]
    except ValueError:
        return None
    ours = all(words[:2] == ["python", "-m"] and words[2:3] and words[2].startswith("sb3_mpc.zoo") for words in lines)
    return "\n".join(map(shlex.join, lines)) if lines and ours else None


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


def arguments_of(card: dict[str, Any]) -> dict[str, Any]:
    """
    :param card: card of an agent
    :return: arguments of its constructor; a learning rate that falls, which it does linearly in presets, as a schedule
    """
    arguments = dict(card["arguments"])
    if card.get("final_learning_rate") is not None:
        arguments["learning_rate"] = LinearSchedule(arguments["learning_rate"], card["final_learning_rate"], 1.0)
    return {**arguments, "train_freq": tuple(arguments["train_freq"])}


def preset_changes(card: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """
    :param card: card of an agent
    :return: arguments that its preset sets to another value today: the agent's value, None if it was not set, and
        today's
    :raises ValueError: if there is no such preset
    """
    if card["preset"] is None or card["environment"] is None:
        return {}
    own, today = arguments_of(card), load_preset(card["algorithm"], environment_of(card), card["preset"])
    # The others are arguments of rl_zoo3
    pairs = {name: (own[name], value) for name, value in today.items() if name in own and name != "policy_kwargs"}
    sizes = today.get("policy_kwargs", {})
    pairs |= {name: (own["policy_kwargs"].get(name), value) for name, value in sizes.items()}
    # "auto" is a rule, whose result is known on one side alone
    return {name: pair for name, pair in pairs.items() if "auto" not in pair and python(pair[0]) != python(pair[1])}


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


def python(value: Any, indent: str = "") -> str:
    """
    :param value: an argument, classes as in agent files
    :param indent: spaces before the line; if given, a long dict or list has a line for each item
    :return: Python that makes it
    """
    if isinstance(value, LinearSchedule):
        return f"LinearSchedule({value.start}, {value.end}, {value.end_fraction})"
    if isinstance(value, dict):
        if value.keys() == {"class"} and str(value["class"]).isidentifier():
            return str(value["class"])
        line = f"{{{', '.join(f'{python(name)}: {python(item)}' for name, item in value.items())}}}"
        if not indent or len(line) < 80:
            return line
        inner = indent + " " * 4
        items = [f"{inner}{python(name)}: {python(item, inner)},\n" for name, item in value.items()]
        return "{\n" + "".join(items) + f"{indent}}}"
    if isinstance(value, list | tuple):
        items = [python(item) for item in value]
        if indent and isinstance(value, list) and sum(map(len, items)) >= 80:
            inner = indent + " " * 4
            return "[\n" + "".join(f"{inner}{item},\n" for item in items) + f"{indent}]"
        return f"[{', '.join(items)}]" if isinstance(value, list) else f"({', '.join(items)})"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def constructor_call(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: Python that makes such an agent in the environment ``env``, with all of its arguments
    """
    lines = [f"{name}={python(value, ' ' * 4)}" for name, value in arguments_of(card).items()]
    return (
        f"{class_name(card)}(\n" + "".join(f"    {line},\n" for line in (python(card["policy"]), "env", *lines)) + ")"
    )


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
    results = {
        "Return of the planner": planner + episodes,
        "Return of the network policy": network if network == "-" else network + episodes,
        "Published return at these frames": published_return(card),
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
    return {FOLDER / "README.md": README.format(table=table(cards), changed=sentence if changed else ""), **pages}


def main() -> None:
    """Command line."""
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
