"""Every id of every suite that is installed keeps to one interface; and what holds without any simulator."""

import importlib
import importlib.util
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from sb3_mpc.envs import SUITES, __main__
from sb3_mpc.envs.gl import set_headless_backend

set_headless_backend()

# Two of each suite, asked in every run of the tests; the others by `make test-envs`
QUICK = {
    "dmc/cheetah-run-v0",
    "humanoid-bench/h1hand-walk-v0",
    "humanoid-bench/h1-sit-hard-v0",
    "myosuite/key-turn-hard-v0",
    "myosuite/myoHandPenTwirlRandom-v0",
    "maniskill/pick-cube-v1",
    "maniskill/MS-HopperHop-v1",
    "metaworld/assembly-v3",
    "metaworld/reach-v3",
}
ALL = [pytest.param(i, marks=() if i in QUICK else pytest.mark.all_envs) for s in SUITES.values() for i in s.ids]


def suite_of(task_id: str) -> Any:
    return SUITES[task_id.partition("/")[0]]


def make(task_id: str, **kwargs: Any) -> gym.Env:
    suite = suite_of(task_id)
    if importlib.util.find_spec(suite.package) is None:
        pytest.skip(f"{suite.title} is not installed")
    try:
        return gym.make(task_id, **kwargs)
    except FileNotFoundError as error:  # assets that we do not download for a test; MyoSuite fetches its own by itself
        assert suite.name == "myosuite" or "python -m mani_skill.utils.download_asset " in str(error)
        pytest.skip(str(error))
    except RuntimeError as error:  # one of ManiSkill's tasks looks at the colours of its model
        if "Vulkan" not in str(error):
            raise
        pytest.skip(str(error))


def roll_out(env: gym.Env, actions: np.ndarray, seed: int | None) -> np.ndarray:
    observation, _ = env.reset(seed=seed)
    seen = [np.append(observation, 0.0)]  # the reward comes last
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append(np.append(observation, reward))
        if terminated or truncated:
            break
    return np.array(seen)


@pytest.mark.parametrize("task_id", ALL)
def test_every_id_keeps_to_the_interface_and_its_seed(task_id):
    env = make(task_id)
    task = suite_of(task_id).tasks[task_id.partition("/")[2]]
    assert env.spec is not None and env.spec.max_episode_steps == task.decisions
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy to simulators, nobody sees them
        check_env(env)

    pixels = "-pixels-" in task_id
    assert env.observation_space.dtype == (np.uint8 if pixels else np.float32)
    assert len(env.observation_space.shape) == (3 if pixels else 1)
    assert env.action_space == gym.spaces.Box(-1, 1, env.action_space.shape, np.float32)

    generator = np.random.default_rng(0)
    env.reset(seed=0)
    ended = False
    for _ in range(20):
        action = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space and np.isfinite(observation).all()
        assert type(reward) is float and np.isfinite(reward)
        assert type(terminated) is bool and type(truncated) is bool
        assert ("success" in info) == ("is_success" in info)
        if "success" in info:
            assert type(info["success"]) is bool and info["success"] == info["is_success"]
        assert not truncated, "an episode of 20 decisions"
        ended = ended or terminated
        if terminated:
            env.reset()
    assert not (ended and task.kwargs.get("terminates") is False)

    actions = generator.uniform(-1, 1, (8, *env.action_space.shape)).astype(np.float32)
    other = make(task_id)
    first, second = roll_out(env, actions, seed=5), roll_out(env, actions, seed=None)
    if "ChallengeBimanual" in task_id:
        pytest.xfail("MyoSuite's reset leaves something of the episode before in this task")
    for again in (env, other):  # whatever happened before
        for expected, seed in ((first, 5), (second, None)):  # without a seed the stream goes on
            seen = roll_out(again, actions, seed=seed)
            np.testing.assert_array_equal(seen[:, :-1], expected[:, :-1])
            np.testing.assert_allclose(seen[:, -1], expected[:, -1], rtol=1e-12)  # some sums vary in the last bit
    env.close()
    other.close()


@pytest.mark.parametrize("task_id", sorted(QUICK))
def test_episodes_end_at_their_time_limit(task_id):
    """Episodes are truncated after exactly the decisions of the spec, unless the task terminates before."""
    env = make(task_id)
    assert env.spec is not None and env.spec.max_episode_steps is not None
    limit = env.spec.max_episode_steps
    if limit > 200:
        pytest.skip("long episodes: the same TimeLimit of Gymnasium")
    env.reset(seed=0)
    for decision in range(1, limit + 1):
        *_, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape, dtype=np.float32))
        if terminated:
            break
        assert truncated == (decision == limit)
    env.close()


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_every_suite_renders(suite):
    env = make(f"{suite.name}/{suite.sample}", render_mode="rgb_array", width=128, height=96)
    env.reset(seed=0)
    try:
        frame = env.render()
    except RuntimeError as error:
        if not any(name in str(error) for name in ("OpenGL", "Vulkan")):
            raise
        pytest.skip(str(error))
    assert isinstance(frame, np.ndarray) and frame.shape == (96, 128, 3) and frame.dtype == np.uint8
    assert frame.std() > 0 and env.metadata["render_fps"] > 0
    env.close()


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_missing_suite_is_explained(suite, monkeypatch):
    """What an import of a blocked package raises is what it raises if the package is absent."""
    for name in [name for name in sys.modules if name.partition(".")[0] == suite.package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, suite.package, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        gym.make(f"{suite.name}/{suite.sample}")
    message = str(caught.value)
    assert message.startswith(f"{suite.title} tasks need {suite.package}") and message.endswith(f": {suite.install}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("dmc/walker-wlak-v0", "walker-walk"),
        ("humanoid-bench/h1hand-wakl-v0", "h1hand-walk"),
        ("myosuite/key-trun-hard-v0", "key-turn-hard"),
        ("maniskill/pick-cub-v1", "pick-cube"),
        ("metaworld/asembly-v3", "assembly"),
    ],
)
def test_unknown_task_names_the_nearest(wrong, right):
    with pytest.raises(gym.error.NameNotFound, match=f"Did you mean: `{right}`"):
        gym.make(wrong)


@pytest.mark.parametrize("terminates", [True, False])
def test_falls_of_humanoid_bench_end_an_episode_or_do_not(monkeypatch, terminates):
    """Its package is on no index: a stand-in that falls at once."""
    pytest.importorskip("mujoco")
    from sb3_mpc.envs import humanoid_bench

    class Falls:
        """As humanoid_bench.env.HumanoidEnv."""

        observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (2,))
        task, dt = SimpleNamespace(success_bar=1.0, camera_name="cam"), 0.02

        def reset(self, seed: int) -> Any:
            return np.zeros(2), {}

        def step(self, action: np.ndarray) -> Any:
            return np.zeros(2), 0.5, np.True_, False, {}

    monkeypatch.setattr(humanoid_bench, "_load", lambda robot, task: Falls())
    env = gym.make("humanoid-bench/h1-walk-v0", terminates=terminates, disable_env_checker=True)
    env.reset(seed=0)
    ended = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(1 if terminates else 1000)]
    assert ended[-1] == (terminates, not terminates)
    assert not any(map(any, ended[:-1]))


@pytest.mark.parametrize("kwargs", [{}, dict(terminates=True)])
def test_success_in_maniskill_ends_an_episode_if_asked(kwargs, monkeypatch):
    """Its own ids, too, go on: who earns nothing more after success may learn to stay short of it."""
    env = make("maniskill/PushCube-v1", **kwargs)
    env.reset(seed=0)
    simulator = env.unwrapped.sapien
    step = simulator.step
    monkeypatch.setattr(simulator, "step", lambda action: (*step(action)[:2], True, False, {"success": True}))
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(1 if kwargs else 50)]
    assert ends[-1] == (bool(kwargs), not kwargs) and not any(map(any, ends[:-1]))
    env.close()


def test_import_is_light():
    code = (
        "import gymnasium, sys; before = set(sys.modules); import sb3_mpc.envs\n"
        "packages = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not packages & {suite.package for suite in sb3_mpc.envs.SUITES.values()}, packages\n"
        "assert not packages & {'mujoco', 'shimmy', 'torch', 'stable_baselines3', 'sapien'}, packages\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_list_shows_every_suite_and_id(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sb3_mpc.envs"])
    assert __main__.main() == 0
    output = capsys.readouterr().out
    for suite in SUITES.values():
        assert all(task_id in output for task_id in suite.ids)
        assert suite.metric in output and (suite.version or suite.install) in output
    monkeypatch.setattr(sys, "argv", ["sb3_mpc.envs", "dcm"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert 'no suite "dcm"' in capsys.readouterr().err


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_the_doctor_checks_every_suite(suite, capsys):
    assert __main__.check(suite)
    output = capsys.readouterr().out
    assert output.startswith(suite.title)
    if suite.version is None:
        assert suite.install in output
    else:
        assert "decisions/s" in output and ("renders" in output or "does not render" in output)


def test_the_doctor_reports_what_fails(capsys, monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the model is missing")

    monkeypatch.setattr(gym, "make", fail)
    suite = SUITES["dmc"]
    assert __main__.check(suite) == (suite.version is None)
    assert suite.version is None or "fails: the model is missing" in capsys.readouterr().out


def test_parallel_simulation():
    """On the CPU ManiSkill simulates one environment at once, by the code that simulates many on a GPU."""
    pytest.importorskip("mani_skill")
    from sb3_mpc.envs.maniskill import make_vec

    env = make_vec("maniskill/pick-cube-v1", 1, sim_backend="physx_cpu")
    single = gym.make("maniskill/pick-cube-v1")
    assert env.observation_space == single.observation_space and env.action_space == single.action_space
    assert env.get_attr("spec")[0].max_episode_steps == 100
    env.seed(0)
    first = env.reset()
    assert first.shape == (1, *single.observation_space.shape) and first.dtype == np.float32
    total = 0.0
    for decision in range(1, 101):
        observation, rewards, dones, infos = env.step(np.full((1, 4), 0.1, dtype=np.float32))
        total += rewards[0]
        assert dones[0] == (decision == 100)
        assert type(infos[0]["is_success"]) is bool
    assert infos[0]["TimeLimit.truncated"] and infos[0]["episode"]["l"] == 100
    assert infos[0]["episode"]["r"] == pytest.approx(total, rel=1e-4)
    assert infos[0]["terminal_observation"].shape == first[0].shape
    assert not np.array_equal(infos[0]["terminal_observation"], observation[0])  # that of the next episode
    env.seed(0)
    np.testing.assert_array_equal(env.reset(), first)
    env.close()
    if not importlib.import_module("torch").cuda.is_available():
        with pytest.raises(RuntimeError, match="make_vec_env"):
            make_vec("maniskill/pick-cube-v1", 64)
