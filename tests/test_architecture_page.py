"""What docs/pages/architecture.md says of the hooks holds, and its worked examples run: a sixth method and a suite."""

import importlib
import inspect
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_mpc
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.networks.world_model import WorldModel
from sb3_mpc.common.planning.planner import MPPIPlanner
from sb3_mpc.common.policies.multitask import MultitaskWorldModel
from sb3_mpc.fac_tdmpc.planner import FactoredPlanner
from tests.support.agents import PointEnv, SpaceEnv, make_agent, vec

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "pages" / "architecture.md").read_text()


def hooks(title: str) -> dict[str, set[str]]:
    """:return: the hooks of a table of the page, and the classes that it says change them"""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| .* \| (.*?) ?\|$", section, re.MULTILINE)
    return {
        hook: {name for name in changed_by.split(", ") if name}
        for names, changed_by in rows
        for hook in re.findall(r"`(\w+)`", names)
    }


def changed_by(hook: str, classes: list[type]) -> set[str]:
    return {cls.__name__ for cls in classes if hook in vars(cls)}


def subclasses(cls: type) -> list[type]:
    found = [derived for direct in cls.__subclasses__() for derived in (direct, *subclasses(direct))]
    own = [derived for derived in found if derived.__module__.startswith("sb3_mpc.")]
    return [derived for derived in own if not derived.__module__.startswith("sb3_mpc.zoo.")]  # such as ablations


def test_hooks_of_the_algorithm() -> None:
    """The table has all that is under the heading "Hooks", and names the methods that change it."""
    source = inspect.getsource(WorldModelAlgorithm).partition("# -- Hooks")[2]
    there = re.findall(r"^    (?:def )?([a-z]\w*)(?:\(|: ClassVar)", source, re.MULTILINE)
    assert len(there) == len(set(there)) > 10
    table = hooks("Hooks of the algorithm")
    assert set(table) == set(there)
    for hook, methods in table.items():
        assert methods == changed_by(hook, list(sb3_mpc.ALGORITHMS.values())), hook


@pytest.mark.parametrize(
    ("title", "base"), [("Hooks of the planner", MPPIPlanner), ("Hooks of the world model", WorldModel)]
)
def test_hooks_of_planner_and_world_model(title: str, base: type) -> None:
    """The tables have all that a class of the package changes, and name these classes."""
    assert len(sb3_mpc.ALGORITHMS) == 5 and FactoredPlanner and MultitaskWorldModel  # imported: subclasses are known
    table, derived = hooks(title), subclasses(base)
    for hook, classes in table.items():
        assert hasattr(base, hook) and classes == changed_by(hook, derived), hook
    for cls in derived:
        changed = {name for name in vars(cls) if not name.startswith("_") and name in vars(base)}
        assert changed <= set(table), f"{cls.__name__} changes what the page does not name"


@pytest.fixture
def sixth_method() -> dict[str, type]:
    return runpy.run_path(str(EXAMPLES / "sixth_method.py"))


def test_sixth_method_is_short() -> None:
    assert len((EXAMPLES / "sixth_method.py").read_text().splitlines()) <= 80


def test_sixth_method_runs(
    models: list[WorldModelAlgorithm], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sixth_method.py", "--steps", "80"])
    runpy.run_path(str(EXAMPLES / "sixth_method.py"), run_name="__main__")
    output = capsys.readouterr().out
    returns = [float(number) for number in re.findall(r"return over 5 episodes: (-?\d+)", output)]
    assert len(returns) == 2 and all(-2000 < number < 0 for number in returns)
    assert models[0].num_timesteps == 80 and models[0]._n_updates > 0 and Path("logs/imitation.zip").exists()


def test_sixth_method_imitates_its_planner(sixth_method: dict[str, type]) -> None:
    """The policy network comes to give what was planned; steps without a plan do not count."""
    model = make_agent(sixth_method["PlanImitation"], "Pendulum-v1", seed=0, learning_rate=0.01)
    model.learn(16)
    batch = model.replay_buffer.sample(64)
    unplanned = batch.plans[0].isnan()
    assert unplanned.any() and not unplanned.all()
    batch = batch._replace(plans=batch.plans.masked_fill(~unplanned, 0.5), buffer_index=None)
    for _ in range(60):
        logs = model.update(batch, model.draw_noise(64))
    assert logs["pi_error"].item() < 0.1
    action = model.actor(model.policy.obs_to_tensor(batch.observations[0].numpy())[0], deterministic=True)
    assert (action - 0.5).abs().mean().item() < 0.1


def test_sixth_method_acts_without_planning(sixth_method: dict[str, type], tmp_path: Path) -> None:
    """After loading, too, with the argument that is its own; planning has to be asked for."""
    make_agent(sixth_method["PlanImitation"], "Pendulum-v1", seed=0, max_action=0.9).learn(20).save(tmp_path / "model")
    model = sixth_method["PlanImitation"].load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    observation = np.array([[1.0, 0.0, 0.5]], np.float32)
    action, state = model.predict(observation, deterministic=True)
    assert model.max_action == 0.9 and state is None
    np.testing.assert_array_equal(action, model.actor.predict(observation, deterministic=True)[0])
    planned, state = model.predict(observation, deterministic=True, use_planner=True)
    np.testing.assert_array_equal(planned, model.policy.predict(observation, deterministic=True)[0])
    assert state is not None
    with pytest.raises(ValueError, match="max_action"):
        make_agent(sixth_method["PlanImitation"], "Pendulum-v1", max_action=1.5)


@pytest.mark.parametrize("observations", ["normalised", "dict"])
def test_sixth_method_takes_what_the_others_take(sixth_method: dict[str, type], observations: str) -> None:
    if observations == "dict":
        space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Box(-1, 1, (3,)))
        env = vec(*[lambda: SpaceEnv(space, spaces.Box(-2, 2, (1,)))] * 2)
    else:
        env = VecNormalize(vec(PointEnv, PointEnv))
    model = make_agent(
        sixth_method["PlanImitation"], env, "MultiInputPolicy" if observations == "dict" else "MlpPolicy"
    )
    model.learn(24)
    assert model._n_updates > 0 and model.predict(env.reset())[0].shape == (2, model.action_space.shape[0])


@pytest.fixture
def own_suite(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """:return: the module, imported as the page says, and forgotten afterwards"""
    for name in [
        name for name in gym.registry if name.startswith("own-suite/")
    ]:  # of the page's code, which is run, too
        monkeypatch.delitem(gym.registry, name)
    monkeypatch.syspath_prepend(EXAMPLES)
    registered = dict(gym.registry)
    yield importlib.import_module("own_suite")
    sys.modules.pop("own_suite")
    gym.registry.clear()
    gym.registry.update(registered)


@pytest.mark.filterwarnings("error")
def test_own_suite(own_suite: ModuleType) -> None:
    """Each id has the interface of the suites, and shows itself."""
    assert own_suite.SUITE.ids == ["own-suite/reach-v0", "own-suite/reach-precisely-v0", "own-suite/reach-pixels-v0"]
    for name in own_suite.SUITE.ids:
        env = gym.make(f"own_suite:{name}", render_mode="rgb_array")
        check_env(env, skip_render_check=False)
        env.reset(seed=0)
        *_, truncated, info = env.step(np.zeros(2, np.float32))
        assert not info["is_success"] and not truncated
        assert env.spec is not None and env.spec.max_episode_steps == 50
        env.close()


def test_own_suite_is_learned_on(own_suite: ModuleType) -> None:
    model = make_agent(sb3_mpc.TDMPC2, gym.make("own_suite:own-suite/reach-v0"), gamma="auto")
    model.learn(60)
    assert model._n_updates > 0 and model.gamma == 0.95  # from the 50 decisions of an episode
