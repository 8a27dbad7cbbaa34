"""Official checkpoints as agents of ours; what TD-MPC2's compute is in tests/tdmpc2/test_golden.py."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mpc import MBDPO, TDMPC2
from sb3_mpc.agents.agent_files import load_agent, read_card
from sb3_mpc.zoo import import_official as command
from sb3_mpc.zoo.import_official import PARTS, import_official
from tests.support.agents import SMALL, SMALL_POLICY, PointEnv, SpaceEnv, assert_one_clear_sentence, assert_same_state
from tests.support.golden import GOLDEN, close, read, read_manifest

CHECKPOINT = GOLDEN / "tdmpc2" / "official_checkpoint.pt"  # 5 observations, 3 actions


def as_official(model: TDMPC2, path: Path) -> Path:
    """:return: a checkpoint as the official code would write it"""
    weights = {}
    for name, value in model.policy.world_model.state_dict().items():
        part = next(part for part in PARTS.values() if name.startswith(part))
        theirs = next(theirs for theirs, ours in PARTS.items() if ours == part)
        weights[theirs + name.removeprefix(part).replace(".ln_", ".ln.")] = value
    th.save({"model": weights}, path)
    return path


def test_imported_agent_acts_learns_and_is_saved(tmp_path: Path) -> None:
    env = SpaceEnv(spaces.Box(-5, 5, (5,)), spaces.Box(-2, 2, (3,)))
    args = argparse.ArgumentParser()
    command.add_arguments(args)
    command.main(args.parse_args([str(CHECKPOINT), "--output", str(tmp_path / "agent")]))
    assert read_card(tmp_path / "agent")["note"] == "imported from the official checkpoint official_checkpoint.pt"
    (observation, _), loaded = env.reset(seed=0), load_agent(tmp_path / "agent", device="cpu")
    model = import_official(CHECKPOINT, env, learning_starts=8, batch_size=4, num_samples=32, num_elites=4)
    assert model.gamma == loaded.gamma == 0.99 and not model.policy.episodic
    assert_same_state(dict(model.policy.state_dict()), dict(loaded.policy.state_dict()))
    assert (loaded.predict(observation)[0] <= 1).all()
    model.learn(12)
    assert env.action_space.contains(model.predict(observation)[0])


@pytest.mark.parametrize("kind", ["pixels", "tasks", "terminations"])
def test_every_kind_of_agent(tmp_path: Path, kind: str) -> None:
    sizes: dict[str, Any] = dict(SMALL_POLICY, enc_dim=24, num_enc_layers=3, dropout=0.0)
    policy, space = "MlpPolicy", spaces.Box(-np.inf, np.inf, (5,))
    if kind == "pixels":
        policy, space = "CnnPolicy", spaces.Box(0, 255, (9, 64, 64), np.uint8)
        sizes |= dict(latent_dim=128, features_extractor_kwargs=dict(num_channels=8))
    elif kind == "tasks":
        policy, space = "MultitaskPolicy", spaces.Dict(obs=space, task=spaces.Discrete(80))
        sizes |= dict(action_dims=[1] * 79 + [2], gammas=[0.99] * 30 + [0.95] * 50, task_dim=4)
    settings: dict[str, Any] = dict(SMALL, episodic=kind == "terminations", device="cpu", buffer_size=100)
    arch = dict(sizes, net_arch=[16, 16])  # as the official code, which has two hidden layers everywhere
    model = TDMPC2(policy, SpaceEnv(space, spaces.Box(-1, 1, (2,))), **settings, policy_kwargs=arch)
    path = as_official(model, tmp_path / "agent.pt")
    dims = sizes.get("action_dims")
    imported = import_official(path, action_dims=dims, **{name: settings[name] for name in (*SMALL, "device")})
    assert imported.observation_space == space and imported.policy.episodic is (kind == "terminations")
    observation = space.sample()
    ours, theirs = (one.predict(observation, deterministic=True) for one in (imported, model))
    assert_same_state(ours, theirs)
    if kind == "tasks":
        assert_same_state(imported.policy.world_model.gammas, model.policy.world_model.gammas)
        with pytest.raises(ValueError, match="80 tasks and does not tell their action_dims: give 80 numbers"):
            import_official(path)


@pytest.mark.parametrize("score", ["trained", "untrained", "absent"])
def test_checkpoints_of_mbdpo(tmp_path: Path, score: str) -> None:
    """What it computes is what the official code has computed; an untrained score network is left out."""
    folder, config = GOLDEN / "mbdpo" / "micro", read_manifest("mbdpo", "micro")["config"]
    weights = read(folder / "weights_init.npz")
    if score != "trained":
        weights = {n: 0 * v if n.startswith("_score") and n.endswith("bias") else v for n, v in weights.items()}
    if score == "absent":
        weights = {name: value for name, value in weights.items() if not name.startswith("_score")}
    th.save({"model": weights}, tmp_path / "agent.pt")
    policy_kwargs = {name: config[name] for name in ("simnorm_dim", "vmin", "vmax")}
    settings: dict[str, Any] = dict(policy_kwargs=policy_kwargs, device="cpu", num_samples=32, num_elites=4)
    settings |= dict(iterations=config["diffusion_steps"] - 1, beta_start=config["diffusion_beta0"])
    model = import_official(tmp_path / "agent.pt", beta_end=config["diffusion_betaT"], **settings)
    assert type(model) is MBDPO and model.use_score_network is (score == "trained") and model.horizon == 3
    planner, forward, batch = model.policy.planner, read(folder / "forward.npz"), read(folder / "batch.npz")
    z = model.policy.world_model.encode(batch["obs"])
    close(z, forward["z"])
    close(planner.energy(z[:-1], batch["action"]), forward["F_energy"])  # type: ignore[operator]
    record = read(folder / "plan_score_only.npz")
    action, _ = model.predict(record["obs"].numpy(), deterministic=True)
    assert np.allclose(action, record["action"], rtol=1e-4, atol=1e-5) == (score == "trained")


def test_another_environment_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        import_official(CHECKPOINT, PointEnv())
    assert_one_clear_sentence(caught.value, "5 observations and 3 actions, the environment given has 3 and 2")


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("pickled", [True, False], ids=["pickle", "torch"])
def test_malicious_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bool) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": {"_dynamics.0.weight": Bomb()}}
    Path("bad.pt").write_bytes(pickle.dumps(content)) if pickled else th.save(content, "bad.pt")
    with pytest.raises(ValueError) as caught:
        import_official("bad.pt")
    assert_one_clear_sentence(caught.value, "bad.pt was refused, and nothing in it executed")
    assert not Path("executed").exists()


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    path, data = tmp_path / "bad.pt", CHECKPOINT.read_bytes()
    for size in (0, 4, 1000, len(data) - 100):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="bad.pt was refused"):
            import_official(path)
    for content, word in (
        (th.zeros(2), "it holds a Tensor"),
        ({"model": {}}, "it has no dynamics.0.bias"),
        ({"model": 3}, "not a checkpoint"),
    ):
        th.save(content, path)
        with pytest.raises(ValueError, match=word) as caught:
            import_official(path)
        assert_one_clear_sentence(caught.value, "bad.pt")
    weights = th.load(CHECKPOINT, weights_only=True)["model"]
    th.save({**weights, "_pi.1.weight": th.zeros(1, 1)}, path)
    with pytest.raises(ValueError, match="does not fit the networks of TD-MPC2") as caught:
        import_official(path)
    assert_one_clear_sentence(caught.value)
    with pytest.raises(FileNotFoundError):
        import_official(tmp_path / "nothing.pt")
