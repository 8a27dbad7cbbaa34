"""One table of arguments: whatever is odd is refused when the agent is made, by a sentence that names it."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import sb3_mpc
from sb3_mpc import TDMPC2
from sb3_mpc.common.checks.arguments import annotations
from sb3_mpc.common.policies.world_model_policy import WorldModelPolicy
from tests.support.agents import PointEnv, SpaceEnv, assert_one_clear_sentence, make_agent

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
NUMBERS = (np.nan, np.inf, -np.inf, 1e300, "no", [1], 1j)
# Of each type of an argument: values that no argument of that type accepts
ODD: dict[type, tuple[Any, ...]] = {
    int: (*NUMBERS, 16.0, 1.5, True, -5),
    float: (*NUMBERS, True, None),
    bool: ("no", 2, 0.5, None, np.nan),
    str: (3, 0.5, [1]),
}
NEGATIVE = {"vmin", "vmax", "log_std_min", "log_std_max", "expl_log_std_min", "expl_log_std_max"}


def odd_arguments(cls: type) -> list[tuple[str, Any]]:
    """:return: arguments of a constructor with values that it must refuse"""
    found = []
    for name, kinds in annotations(cls).items():
        for kind in (bool, int, float, str):
            if kind in kinds and name not in ("policy", "env", "device", "_init_setup_model"):
                values = [value for value in ODD[kind] if not (name == "verbose" and value is True)]
                values = [value for value in values if not (value is None and type(None) in kinds)]
                found += [(name, value) for value in values if not any(_suits(value, other) for other in kinds)]
                if kind is float and name not in NEGATIVE:
                    found.append((name, -0.5))
                break
    return found


def _suits(value: Any, kind: Any) -> bool:
    return (kind is bool and isinstance(value, bool)) or (not isinstance(kind, type) and not isinstance(value, str))


@pytest.mark.parametrize("method", sb3_mpc.METHODS)
def test_every_odd_argument_is_refused_by_name(method: str) -> None:
    """All of them, of all types, without building anything."""
    cls = sb3_mpc.ALGORITHMS[method]
    cases = odd_arguments(cls)
    assert len(cases) > 250
    for name, value in cases:
        with pytest.raises((ValueError, TypeError)) as error:
            make_agent(cls, PointEnv(), **{name: value})
        assert_one_clear_sentence(error.value, name, "use|leave|reduce|load|needs")


def test_every_odd_argument_of_the_policy_is_refused_by_name() -> None:
    cases = [(name, value) for name, value in odd_arguments(WorldModelPolicy) if name not in ("episodic",)]
    assert len(cases) > 150
    for name, value in [*cases, ("net_arch", [0]), ("net_arch", [1.5]), ("net_arch", 3), ("net_arch", [1] * 1_000)]:
        with pytest.raises((ValueError, TypeError)) as error:
            make_agent(TDMPC2, PointEnv(), policy_kwargs={name: value})
        assert_one_clear_sentence(error.value, name, "use|leave|reduce|multiple")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(min_std=3.0), ["min_std", "max_std"]),
        (dict(num_elites=17), ["num_elites=17", "num_samples=16"]),
        (dict(num_pi_trajs=17), ["num_pi_trajs=17", "num_samples=16"]),
        (dict(policy_kwargs=dict(log_std_min=3.0)), ["log_std_min=3.0", "log_std_max"]),
        (dict(policy_kwargs=dict(vmin=20.0)), ["vmin=20.0", "vmax"]),
        (dict(train_freq=0), ["train_freq=0"]),
        (dict(train_freq=(1, "day")), ["train_freq", "episode"]),
        (dict(train_freq=1.0), ["train_freq=1.0"]),
        (dict(learning_rate=lambda _: np.nan), ["learning_rate=nan"]),
        (dict(action_noise=0.1), ["action_noise=0.1", "ActionNoise"]),
        (dict(replay_buffer_kwargs=[1]), ["replay_buffer_kwargs", "dict"]),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_relations_and_what_is_no_number(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        make_agent(TDMPC2, PointEnv(), **arguments)
    assert_one_clear_sentence(error.value, *words)


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (spaces.Dict(), BOX),
        (spaces.Box(-1, 1, (0,)), BOX),
        (spaces.Dict(a=BOX, b=spaces.Box(-1, 1, (2, 0))), BOX),
        (BOX, spaces.Box(-1, 1, (0,))),
    ],
    ids=str,
)
def test_spaces_without_anything_in_them(observation: spaces.Space, action: spaces.Space) -> None:
    policy = "MultiInputPolicy" if isinstance(observation, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError) as error:
        make_agent(TDMPC2, SpaceEnv(observation, action), policy=policy)
    assert_one_clear_sentence(error.value, "space|is empty", "use|leave")


def test_what_was_accepted_stays_so() -> None:
    model = make_agent(
        TDMPC2, PointEnv(), num_samples=np.int64(16), tau=np.float32(0.5), verbose=False, seed=np.int32(1)
    )
    assert model.num_samples == 16


@pytest.mark.parametrize("flag", ["no", 1.5, None])
def test_flags_of_predict(flag: Any) -> None:
    model = make_agent(TDMPC2, PointEnv())
    for policy in (model, model.policy, model.actor):
        with pytest.raises(ValueError) as error:
            policy.predict(np.zeros(3, np.float32), deterministic=flag)
        assert_one_clear_sentence(error.value, "deterministic", "True or False")
    assert model.predict(np.zeros(3, np.float32), deterministic=np.bool_(True))[0].shape == (2,)
