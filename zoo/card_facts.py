"""What the header of an agent file says, and Python and command lines that make such an agent again."""

import json
import shlex
from typing import Any

import gymnasium as gym
from stable_baselines3.common.utils import LinearSchedule

import sb3_mpc
import sb3_mpc.envs  # registers what cards name
from sb3_mpc.zoo.presets import load_preset

PROTOCOL = ("action_repeat", "terminates", "max_episode_steps")
SCORE = "score "  # before the name of a task, in the evaluation of an agent of several tasks


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
    registered = gym.registry.get(environment_of(card))
    usual = {} if registered is None else registered.kwargs
    arguments = protocol_of(card["environment"] or {}).items()
    return "".join(f", {k}={v}" for k, v in arguments if k != "max_episode_steps" and usual.get(k) != v)


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
    :return: returns of the planner and of the network policy, with their success rates if there are any; of an agent of
        several tasks the planner's mean score
    """
    found, scores = card["evaluation"] or {}, scores_of(card).values()
    if scores:
        return f"score {sum(scores) / len(scores):.1f}", "-"

    def text(prefix: str) -> str:
        if f"{prefix}mean_return" not in found:
            return "-"
        spread, success = found.get(f"{prefix}std_return"), found.get(f"{prefix}success")
        words = f"{found[f'{prefix}mean_return']:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
        return words + ("" if success is None else f", {succeeded(success)}")

    return text(""), text("network_")


def succeeded(fraction: float) -> str:
    """
    :param fraction: of the episodes that were successful
    :return: in words
    """
    return f"success {100 * fraction:.0f} %"


def frames_of(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: simulator frames that it was trained for
    """
    frames = (card["steps"] or {}).get("frames")
    return "-" if frames is None else f"{frames:,}"


def published_result(card: dict[str, Any]) -> str:
    """
    :param card: card of an agent
    :return: mean return of the official code after as many frames, or at the next point that was published; its success
        rate if that of the agent was measured
    """
    from sb3_mpc.zoo.returns import read_published  # pandas, which not every command needs

    by_success = (card["evaluation"] or {}).get("success") is not None
    frames, rows = (card["steps"] or {}).get("frames"), read_published(by_success)
    if frames is None:
        return "-"
    rows = rows[(rows["method"] == card["algorithm"]) & (rows["task"] == environment_of(card))]
    rows = rows[rows["frames"] >= frames]
    if rows.empty:
        return "-"
    point = rows["frames"].min()
    value = rows["return"][rows["frames"] == point].mean()
    text = succeeded(value / 100) if by_success else f"{value:.1f}"
    return text if point == frames else f"{text} (at {point:,})"


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
