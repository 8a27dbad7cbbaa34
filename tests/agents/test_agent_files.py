"""Agents as files that hold data only: what comes back, what old files say, and what is refused."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

import sb3_mpc
from sb3_mpc import BMPC, TDMPC2, FacTDMPC
from sb3_mpc.agents import agent_format
from sb3_mpc.agents.agent_files import load_agent, read_card, save_agent
from sb3_mpc.agents.provenance import git_commit
from tests.support import TESTS
from tests.support.agents import (
    SMALL,
    SMALL_POLICY,
    PointEnv,
    SpaceEnv,
    assert_one_clear_sentence,
    assert_same_state,
    make_agent,
    observations_of,
    vec,
)

OLD_FILE = TESTS / "data" / "agent-format-1.safetensors"


def predictions(model: Any, observations: Any) -> Any:
    """:return: three decisions in a row, with the plans that they carry on"""
    state, found = None, []
    for _ in range(3):
        action, state = model.predict(observations, state=state, deterministic=True)
        found.append((action, state))
    return found


@pytest.mark.parametrize("terminate", [False, True], ids=["truncated", "terminated"])
def test_saved_agent_acts_and_learns_on(algorithm: Any, tmp_path: Path, terminate: bool) -> None:
    env = PointEnv(4, terminate)
    own: dict[str, Any] = dict(distill_steps=5) if algorithm is FacTDMPC else {}
    model = make_agent(algorithm, env, seed=3, learning_rate=1e-3, horizon=3, train_freq=(2, "step"), **own).learn(20)
    path = save_agent(model, tmp_path / "agent")
    assert path == tmp_path / "agent.safetensors" and [path] == list(tmp_path.iterdir())
    loaded, with_env = load_agent(path, device="cpu"), load_agent(str(tmp_path / "agent"), vec(PointEnv, PointEnv))
    assert type(loaded) is algorithm and loaded.get_env() is None
    assert_same_state(loaded.get_parameters()["policy"], model.get_parameters()["policy"])
    observations = observations_of(env, 4)
    assert_same_state(predictions(loaded, observations), predictions(model, observations))
    prior, expected = (one.actor.predict(observations, deterministic=True)[0] for one in (loaded, model))
    np.testing.assert_array_equal(prior, expected)
    for name in ("horizon", "gamma", "learning_starts", "pretrain_gradient_steps", "train_freq", "seed", "_n_updates"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.lr_schedule(0.5) == 1e-3 and loaded.num_timesteps == 20
    with_env.learn(20, reset_num_timesteps=False)
    assert with_env.num_timesteps == 40 and with_env._n_updates > model._n_updates


def test_who_loads_an_agent_need_not_compile(tmp_path: Path) -> None:
    for compile, kept in ((True, "auto"), (False, False)):
        save_agent(make_agent(TDMPC2, PointEnv(), compile=compile), tmp_path / "agent")
        assert load_agent(tmp_path / "agent", device="cpu").compile == kept


def test_saved_policy_of_each_kind_of_observation(tmp_path: Path) -> None:
    image = spaces.Box(0, 255, (3, 16, 16), np.uint8)
    numbers = spaces.Box(np.array([-np.inf, -1], np.float32), np.array([5, np.inf], np.float32))
    mixed = spaces.Dict([("z", image), ("a", numbers), ("k", spaces.Discrete(3, start=1))])
    mixed["many"], mixed["bits"] = spaces.MultiDiscrete([2, 3]), spaces.MultiBinary([2, 2])
    action_space = spaces.Box(-2, np.array([[1.0, 3.0]]), dtype=np.float64)
    for policy, space in dict(MlpPolicy=numbers, CnnPolicy=image, MultiInputPolicy=mixed).items():
        model = make_agent(TDMPC2, SpaceEnv(space, action_space), policy, seed=0)
        loaded = load_agent(save_agent(model, tmp_path / policy))
        assert loaded.observation_space == space and loaded.action_space == action_space
        if isinstance(space, spaces.Dict):
            assert list(loaded.observation_space.spaces) == list(space.spaces)
        space.seed(0)
        observation = space.sample()
        assert_same_state(predictions(loaded, observation), predictions(model, observation))


def test_saved_student_of_an_expert_of_another_method(tmp_path: Path) -> None:
    """What the student takes over from the expert are classes, too."""
    expert = make_agent(BMPC, PointEnv(), policy_kwargs=dict(optimizer_class=th.optim.AdamW)).learn(20)
    model = FacTDMPC.distill(expert, steps=2)
    observations = observations_of(PointEnv(), 2)
    loaded = load_agent(save_agent(model, tmp_path / "student"))
    assert_same_state(predictions(loaded, observations), predictions(model, observations))
    assert type(loaded.policy.world_model) is type(expert.policy.world_model)


def test_saved_multitask_agent(tmp_path: Path) -> None:
    space = spaces.Dict(obs=spaces.Box(-5, 5, (3,)), task=spaces.Discrete(2))
    tasks: dict[str, Any] = dict(action_dims=[2, 1], gammas=[0.9, 0.99], task_dim=4)
    env = SpaceEnv(space, spaces.Box(-1, 1, (2,)))
    model = TDMPC2("MultitaskPolicy", env, **SMALL, policy_kwargs={**SMALL_POLICY, **tasks}, device="cpu")
    loaded = load_agent(save_agent(model, tmp_path / "agent"), env)
    observation = dict(obs=np.ones(3, np.float32), task=np.int64(1))
    assert_same_state(predictions(loaded, observation), predictions(model, observation))


def test_files_may_be_of_half_precision(tmp_path: Path) -> None:
    model = make_agent(TDMPC2, PointEnv()).learn(20)
    model.policy.running_scale.value.fill_(1e5)  # more than half precision holds
    sizes = [save_agent(model, tmp_path / dtype, dtype).stat().st_size for dtype in ("float32", "float16")]
    assert sizes[1] < 0.75 * sizes[0]  # the rest is the headers
    loaded = load_agent(tmp_path / "float16")
    assert loaded.policy.running_scale.value.item() == 1e5
    for ours, theirs in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        assert ours.dtype == th.float32
        th.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match='dtype=\'int8\' is unknown: use "float32" or "float16"'):
        save_agent(model, tmp_path / "int8", "int8")


@pytest.mark.parametrize("goals", [False, True], ids=["box", "dict"])
def test_statistics_of_normalised_observations(tmp_path: Path, goals: bool) -> None:
    space: Any = spaces.Box(-5, 5, (3,))
    if goals:
        space = spaces.Dict(a=space, b=spaces.Box(0, 1, (2,)))
    make = lambda: SpaceEnv(space, spaces.Box(-1, 1, (2,)))  # noqa: E731
    env = VecNormalize(vec(make), clip_obs=3.0, norm_obs_keys=["a"] if goals else None)
    model = make_agent(TDMPC2, env, "MultiInputPolicy" if goals else "MlpPolicy").learn(20)
    path = save_agent(model, tmp_path / "agent", "float16")
    loaded = load_agent(path, make())
    ours, theirs = loaded.get_vec_normalize_env(), model.get_vec_normalize_env()
    raw = vec(make).reset()
    assert_same_state(ours.normalize_obs(raw), theirs.normalize_obs(raw))
    assert (ours.ret_rms.mean, ours.ret_rms.count) == (theirs.ret_rms.mean, theirs.ret_rms.count)
    assert not ours.training and not ours.norm_reward and ours.clip_obs == 3.0
    loaded.learn(10, reset_num_timesteps=False)
    for wrong in (None, VecNormalize(vec(make))):
        with pytest.raises(ValueError, match="give load_agent the environment without VecNormalize") as caught:
            load_agent(path, wrong)
        assert_one_clear_sentence(caught.value)


def test_normalised_rewards_need_no_environment(tmp_path: Path) -> None:
    model = make_agent(TDMPC2, VecNormalize(vec(PointEnv), norm_obs=False)).learn(12)
    load_agent(save_agent(model, tmp_path / "agent")).predict(observations_of(PointEnv(), 1))


def test_card_says_what_the_file_is(tmp_path: Path) -> None:
    model = make_agent(TDMPC2, "Pendulum-v1", seed=7).learn(12)
    evaluation = dict(episodes=10, mean_return=np.float32(1.5))
    path = save_agent(model, tmp_path / "agent", preset="cpu", evaluation=evaluation, note="äöü")
    card = read_card(tmp_path / "agent")
    assert card["environment"] == dict(id="Pendulum-v1", max_episode_steps=200, kwargs={})
    assert (card["format"], card["algorithm"], card["policy"], card["seed"]) == (1, "tdmpc2", "MlpPolicy", 7)
    assert card["steps"] == dict(decisions=12) and card["preset"] == "cpu" and card["note"] == "äöü"
    assert card["evaluation"] == dict(episodes=10, mean_return=1.5)
    assert {"sb3_mpc", "torch", "stable_baselines3", "gymnasium"} <= card["versions"].keys()
    assert card["arguments"]["policy_kwargs"] == SMALL_POLICY and card["arguments"]["horizon"] == SMALL["horizon"]
    assert card["vec_normalize"] is None and card["commit"] == git_commit()
    with safe_open(str(path), framework="np") as file:
        assert list(file.metadata()) == ["sb3_mpc"]
    data = path.read_bytes()
    save_agent(model, path, preset="cpu", evaluation=evaluation, note="äöü")
    assert path.read_bytes() == data


class MyExtractor(FlattenExtractor):
    pass


class MyTDMPC2(TDMPC2):
    pass


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    extractor = make_agent(TDMPC2, PointEnv(), policy_kwargs=dict(features_extractor_class=MyExtractor))
    own_class = make_agent(MyTDMPC2, PointEnv())
    own_policy = make_agent(TDMPC2, PointEnv(), type("MyPolicy", (TDMPC2.policy_aliases["MlpPolicy"],), {}))
    for model, word in ((extractor, "features_extractor_class"), (own_class, "MyTDMPC2"), (own_policy, "MyPolicy")):
        with pytest.raises(ValueError) as caught:
            save_agent(model, tmp_path / "agent")
        assert_one_clear_sentence(caught.value, word, r"use model.save\(\)")
    with pytest.raises(ValueError) as caught:
        save_agent(make_agent(TDMPC2, PointEnv()), tmp_path / "agent", evaluation=object())
    assert_one_clear_sentence(caught.value, "The card's evaluation is <object", "plain numbers")
    assert not list(tmp_path.iterdir())


def test_full_disk_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The previous file stays whole, and nothing else is left."""
    model = make_agent(TDMPC2, PointEnv())
    path = save_agent(model, tmp_path / "agent")
    data = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_agent(model.learn(12), path)
    assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]


def test_another_environment_is_refused(tmp_path: Path) -> None:
    path = save_agent(make_agent(TDMPC2, PointEnv()), tmp_path / "agent")
    with pytest.raises(
        ValueError, match="trained in another environment than the one given: Observation spaces do not"
    ):
        load_agent(path, "Pendulum-v1")


# -- Files that are damaged, foreign or malicious ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: a small agent file"""
    return save_agent(make_agent(TDMPC2, PointEnv(), seed=1), tmp_path_factory.mktemp("agent") / "agent")


def assert_refused(path: Path, *words: str) -> None:
    """The file is named in one sentence, and nothing is executed."""
    with pytest.raises(ValueError) as caught:
        load_agent(path, device="cpu")
    assert_one_clear_sentence(caught.value, path.name, *words)


def test_truncated_file_is_refused(agent: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "broken.safetensors", agent.read_bytes()
    for size in (0, 5, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert_refused(path)


def test_flipped_bits_are_found(agent: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "broken.safetensors", agent.read_bytes()
    for i in [*range(16), *np.random.default_rng(0).integers(16, len(data), 60)]:
        broken = bytearray(data)
        broken[i] ^= 1 << int(i % 8)
        path.write_bytes(broken)
        assert_refused(path)


def rewritten(agent: Path, path: Path, **changes: Any) -> Path:
    """:return: the file with another card and a checksum that fits: what someone malicious would write"""
    card = {**{name: value for name, value in read_card(agent).items() if name != "sha256"}, **changes}
    tensors = load_file(agent)
    card["sha256"] = agent_format._digest(card, {name: th.from_numpy(value) for name, value in tensors.items()})
    save_file(tensors, path, {"sb3_mpc": json.dumps(card)})
    return path


def test_rewritten_card_alone_is_accepted(agent: Path, tmp_path: Path) -> None:
    assert load_agent(rewritten(agent, tmp_path / "a.safetensors", note="ours")).seed == 1


# What every card's arguments have
CALL = dict(learning_rate=1e-3, train_freq=[1, "step"], policy_kwargs={})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (dict(format=2), "format version 2, .* reads up to 1: update sb3-mpc, by git pull"),
        (dict(format="1"), "unknown format version"),
        (dict(format=0), "unknown format version"),
        (dict(algorithm="os.system"), "'os.system', which this sb3_mpc does not have: it has tdmpc2"),
        (dict(algorithm=["tdmpc2"]), "does not have"),
        (dict(algorithm="bmpc"), "does not describe a BMPC"),
        (dict(policy="os.system"), "unknown policy 'os.system'"),
        (dict(policy=None), "wrong type for policy"),
        (dict(arguments={"os.system": "touch executed"}), "wrong type for arguments"),
        (dict(arguments={**CALL, "env": "os:system"}), "unknown arguments .*env"),
        (dict(arguments={**CALL, "tensorboard_log": "../../executed"}), "unknown arguments"),
        (dict(arguments=None), "wrong type for arguments"),
        (dict(state={"__class__": "os.system"}), "does not describe"),
        (dict(observation_space=dict(type="os.system")), "unknown space 'os.system'"),
        (dict(observation_space=dict(type="Box", dtype="O", shape=[1], low=0, high=1)), "cannot hold"),
        (dict(observation_space=dict(type="Box", dtype="float32", shape=[2**40], low=0, high=1)), "too large"),
        (dict(observation_space=dict(type="Box", dtype="float32", shape=[4], low=0, high=1)), "size mismatch"),
        (dict(action_space="../../../etc/passwd"), "wrong type for action_space"),
        (dict(vec_normalize={"venv": "os.system", "norm_obs": False}), ""),
        (dict(environment={"id": "os:system"}), "'os:system'.* is not an environment id"),
        (dict(environment="os.system"), "is not an environment id"),
        (dict(environment={"id": "a/b-v0", "kwargs": "os.system"}), "is not an environment id"),
        (dict(steps=5), "wrong type for steps"),
        (dict(steps={"decisions": "many"}), "wrong type for steps"),
        (dict(state={"num_timesteps": "x", "_n_updates": 1, "_episode_num": 1}), "invalid state"),
        (dict(environment={"id": "../../x"}), "is not an environment id"),
        (dict(environment={"id": "a\x1b[2J-v0"}), r"a\\x1b\[2J-v0.* is not an environment id"),
        (dict(environment={"id": "a`b|c-v0"}), "is not an environment id"),
        (dict(commit="$(touch executed)"), "wrong type for commit"),
        (dict(final_learning_rate=-1.0), "The final learning_rate=-1.0 is out of range"),
        (dict(versions=None), "wrong type for versions"),
        (dict(evaluation={"mean_return": "1.0"}), "wrong type for evaluation"),
        (dict(command="a\x1bb"), "wrong type for command"),
        (dict(command="touch executed"), None),
    ],
)
def test_malicious_card_is_refused(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], word: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("executed"))
    path = rewritten(agent, tmp_path / "bad.safetensors", **changes)
    if word is None or "vec_normalize" in changes:  # text that nobody interprets
        load_agent(path)
    else:
        assert_refused(path, word)
    assert [file.name for file in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.mark.parametrize("name", ["world_model_class", "planner_class", "optimizer_class", "features_extractor_class"])
@pytest.mark.parametrize("value", ["os.system", {"class": "os.system"}, {"class": "Popen"}, 1])
def test_malicious_class_is_refused(agent: Path, tmp_path: Path, name: str, value: Any) -> None:
    arguments = read_card(agent)["arguments"]
    arguments["policy_kwargs"] |= {name: value}
    assert_refused(rewritten(agent, tmp_path / "bad.safetensors", arguments=arguments), "does not describe a TDMPC2")


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (LinearSchedule(1e-3, 0.0, 1.0), (1e-3, 5e-4, 0.0)),
        (lambda remaining: 1e-3 * remaining, (1e-3, 5e-4, 0.0)),  # rl_zoo3's is such a function
        (lambda remaining: 1e-3 * remaining**2, (1e-3, 1e-3, 1e-3)),
        (3e-4, (3e-4, 3e-4, 3e-4)),
    ],
    ids=["linear", "function", "other", "constant"],
)
def test_learning_rate_that_changes(tmp_path: Path, schedule: Any, rates: tuple[float, ...]) -> None:
    """A file holds no functions, but a rate that changes linearly is two numbers."""
    model = make_agent(TDMPC2, "Pendulum-v1", learning_rate=schedule)
    path = save_agent(model, tmp_path / "agent")
    for _ in range(2):  # also of the file of an agent from a file
        loaded = load_agent(path)
        assert tuple(loaded.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0)) == pytest.approx(rates)
        path = save_agent(loaded, tmp_path / "again")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\xff" * 8 + b"{}", "not a complete agent file"),
        ((2**40).to_bytes(8, "little") + b"{}", "not a complete agent file"),
        ((2).to_bytes(8, "little") + b"os", "not a complete agent file"),
        ((2).to_bytes(8, "little") + b"{}", "no header of sb3_mpc"),
        (pickle.dumps(os.getcwd), "not a complete agent file"),
    ],
    ids=["longest header", "long header", "no JSON", "no header", "pickle"],
)
def test_malicious_header_is_refused(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    assert_refused(path, word)


@pytest.mark.parametrize("text", ["os.system('x')", "[" * 100_000, "[]", "null", "{}", '"x"'])
def test_malicious_json_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"../../x": np.zeros(1, np.float32)}, tmp_path / "bad.safetensors", {"sb3_mpc": text})
    assert_refused(tmp_path / "bad.safetensors", "header that cannot be read")


@pytest.mark.parametrize(
    "changes",
    [
        dict(observation_space=dict(type="Box", dtype="float32", shape=[2**21], low=0, high=1)),
        dict(policy_kwargs=dict(model_size=317)),
        dict(policy_kwargs=dict(num_enc_layers=10**5)),
        dict(policy_kwargs=dict(num_enc_layers=100, latent_dim=4096, enc_dim=4096)),
        dict(policy_kwargs=dict(net_arch=[1] * 10**5)),
        dict(policy_kwargs=dict(num_q=2**20)),
        dict(policy_kwargs=dict(num_bins=2**20, num_q=2**10)),
        dict(arguments=dict(num_samples=10**7, horizon=1_000)),
    ],
    ids=str,
)
def test_small_file_costs_little(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """A card may claim anything: nothing is built that is much larger than the file."""
    card = read_card(agent)
    card["arguments"]["policy_kwargs"] |= changes.pop("policy_kwargs", {})
    card["arguments"] |= changes.pop("arguments", {})
    path = rewritten(agent, tmp_path / "bad.safetensors", arguments=card["arguments"], **changes)
    largest, fill = 0, th.Tensor.uniform_

    def watched(tensor: th.Tensor, *args: Any, **kwargs: Any) -> th.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return fill(tensor, *args, **kwargs)

    monkeypatch.setattr(th.Tensor, "uniform_", watched)
    assert_refused(path, "does not describe a TDMPC2")
    assert largest < 2_000_000


def test_card_starts_no_compiler(agent: Path, tmp_path: Path) -> None:
    arguments = {**read_card(agent)["arguments"], "compile": True}
    model = load_agent(rewritten(agent, tmp_path / "a.safetensors", arguments=arguments))
    assert model.compile == "auto" and not model.policy.acceleration.compiles


def test_weights_that_are_nan_are_refused(agent: Path, tmp_path: Path) -> None:
    tensors, card = load_file(agent), read_card(agent)
    name = next(name for name in tensors if "prior_net" in name)
    tensors[name].reshape(-1)[0] = np.nan
    del card["sha256"]
    agent_format.write_agent(tmp_path / "a", card, {n: th.from_numpy(value) for n, value in tensors.items()})
    assert_refused(tmp_path / "a", f"{name} is NaN or infinite")


def test_loading_leaves_global_randomness_alone(agent: Path) -> None:
    state = th.get_rng_state(), np.random.get_state()[1].copy()
    load_agent(agent)
    assert th.equal(th.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_malicious_zip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SB3 writes them, with code in place of the weights and of the data; whatever the name of the file."""
    monkeypatch.chdir(tmp_path)
    for name in ("bad.zip", "bad.safetensors"):
        with zipfile.ZipFile(name, "w") as archive:
            for member in ("data", "policy.pth", "pytorch_variables.pth"):
                archive.writestr(member, pickle.dumps(Bomb()))
        assert_refused(Path(name), "zip file, which may run code .* use the load")
    assert not Path("executed").exists()


def test_missing_file_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist: check the name"):
            load_agent(path)


# -- Files of former versions ------------------------------------------------------------------------------------------


def test_file_of_format_version_1_is_read() -> None:
    """Written by version 1 of the format; ``note`` holds what the agent did then."""
    card = read_card(OLD_FILE)
    assert card["format"] == 1 and card["steps"] == dict(decisions=40)
    model = load_agent(OLD_FILE, device="cpu")
    observations, state = observations_of(PointEnv(), 3), None
    for expected in card["note"]:
        action, state = model.predict(observations, state=state, deterministic=True)
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)


def test_every_algorithm_has_a_key() -> None:
    assert {cls.__name__ for cls in sb3_mpc.ALGORITHMS.values()} == set(sb3_mpc.__all__)
