"""A run that takes long says so when it has just begun; nothing else changes."""

import warnings
from typing import Any

import pytest
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_mpc import BMPC, TDMPC2
from sb3_mpc.common import collection
from sb3_mpc.common.estimate import RunEstimate, duration, number_of_updates
from tests.support.agents import PointEnv, assert_same_state, make_agent, two_envs

STEP, EPISODE = TrainFrequencyUnit.STEP, TrainFrequencyUnit.EPISODE


def slow_run(model: Any, monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any) -> None:
    """Learn as if a plan took two seconds and an update three."""
    planned, updated = RunEstimate.planned, RunEstimate.updated
    monkeypatch.setattr(RunEstimate, "planned", lambda self, seconds: planned(self, 2.0))
    monkeypatch.setattr(RunEstimate, "updated", lambda self, count, seconds: updated(self, count, 3.0 * count))
    model.learn(*args, callback=lambda variables, _: variables["self"].num_timesteps < 20, **kwargs)


def test_it_adds_what_is_left() -> None:
    estimate = RunEstimate(steps=100, plans=90, updates=200, compiles=False)
    estimate.started -= 50.0 + 2.0  # the ten random steps, and the first plan
    estimate.planned(2.0)
    assert estimate.step_seconds == pytest.approx(5.0, abs=0.5) and estimate.remaining() is None
    assert [estimate.updated(count, 9.0) for count in estimate.parts(150)[:1]] == [None]
    assert estimate.remaining() is None  # the first update does not count
    estimate.updated(2, 6.0)
    estimate.step_seconds = 5.0
    assert estimate.remaining() == 89 * (2.0 + 5.0) + 197 * 3.0
    assert "about 20 minutes more" in estimate.sentence([]) and "Shorter" not in estimate.sentence([])
    assert "89 plans of 2000 ms, 197 updates of 3000 ms. Shorter: A, B." in estimate.sentence(["A", "B"])


def test_the_first_compiled_plan_says_nothing() -> None:
    estimate = RunEstimate(steps=10, plans=10, updates=0, compiles=True)
    estimate.planned(60.0)
    assert estimate.remaining() is None
    estimate.planned(0.5)
    assert estimate.remaining() == 8 * 0.5


def test_updates_without_any_left() -> None:
    """Only acting: the updates that are not made are not waited for."""
    estimate = RunEstimate(steps=10, plans=10, updates=0, compiles=False)
    estimate.planned(1.0)
    assert estimate.remaining() == 9.0 and "updates" not in estimate.sentence([])


def test_updates_on_the_seeding_data_are_parted_once() -> None:
    estimate = RunEstimate(steps=10, plans=5, updates=20, compiles=False)
    assert estimate.parts(3) == [3] and estimate.parts(20) == [1, 2, 17]
    estimate.updated(1, 1.0)
    assert estimate.parts(20) == [20]


@pytest.mark.parametrize(
    ("n_envs", "train_freq", "gradient_steps", "expected"),
    [
        (1, TrainFreq(1, STEP), 1, 100),
        (10, TrainFreq(1, STEP), 5, 50),
        (4, TrainFreq(2, STEP), 3, 37),
        (4, TrainFreq(2, STEP), -1, 100),
        (1, TrainFreq(1, EPISODE), 10, 0),
        (1, TrainFreq(1, EPISODE), -1, 100),
    ],
)
def test_number_of_updates(n_envs: int, train_freq: TrainFreq, gradient_steps: int, expected: int) -> None:
    assert number_of_updates(100, n_envs, train_freq, gradient_steps) == expected


@pytest.mark.parametrize("n_envs", [1, 2])
def test_number_of_updates_is_what_a_run_makes(n_envs: int) -> None:
    model = make_agent(TDMPC2, PointEnv() if n_envs == 1 else two_envs(), gradient_steps=3, train_freq=2)
    model.learn(40)
    planned = number_of_updates(40 - model.learning_starts, n_envs, model.train_freq, model.gradient_steps)
    assert abs(model._n_updates - planned) <= model.gradient_steps


def test_in_words() -> None:
    words = [duration(seconds) for seconds in (100, 200, 3_600, 7_300, 100_000, 400_000)]
    assert words == ["100 seconds", "3.3 minutes", "60 minutes", "2 hours", "28 hours", "4.6 days"]


def test_a_long_run_says_so(algorithm: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Before the updates on the seeding data are finished."""
    model = make_agent(algorithm, PointEnv(), pretrain_gradient_steps=6, verbose=1)
    slow_run(model, monkeypatch, 1_000)
    said = [line for line in capsys.readouterr().out.splitlines() if "will take" in line]
    assert len(said) == 1
    left = 6 + (1_000 - 8) - 1 - 2  # one to warm up and two that were measured
    assert f"991 plans of 2000 ms, {left} updates of 3000 ms. Shorter: preset=" in said[0]


@pytest.mark.parametrize(("method", "fast"), [(TDMPC2, "best"), (BMPC, "small")])  # what the method has
@pytest.mark.parametrize("preset", [None, "cpu", "small"])
def test_advice_is_what_is_not_done_yet(
    method: Any, fast: str, preset: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    settings: dict[str, Any] = {} if preset is None else dict(preset=preset)
    slow_run(make_agent(method, two_envs(), verbose=1, **settings), monkeypatch, 1_000)
    (advice,) = (line for line in capsys.readouterr().out.splitlines() if "will take" in line)
    assert ('preset="cpu"' in advice, f'preset="{fast}"' in advice) == (preset is None, preset != "small")
    assert ("fewer updates" in advice) == (preset == "small")  # the others have one for two decisions here
    assert "several environments" not in advice and "compile=True" in advice


def test_without_output_it_is_one_warning_unless_there_is_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="will take about 82 minutes more") as said:
        slow_run(make_agent(TDMPC2, PointEnv()), monkeypatch, 1_000)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="rich is experimental")
        slow_run(make_agent(TDMPC2, PointEnv()), monkeypatch, 1_000, progress_bar=True)
        slow_run(make_agent(TDMPC2, PointEnv()), monkeypatch, 40)  # a minute or two are not worth a word


def test_a_resumed_run_counts_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    model = make_agent(TDMPC2, PointEnv(), verbose=1, train_freq=2).learn(12)
    slow_run(model, monkeypatch, 500, reset_num_timesteps=False)
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "will take" in line)
    assert "496 plans of 2000 ms, 248 updates of 3000 ms" in said


def test_it_changes_nothing(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> Any:
        return make_agent(algorithm, PointEnv(), seed=0, pretrain_gradient_steps=6, verbose=1).learn(24)

    monkeypatch.setattr(collection, "SECONDS_WORTH_SAYING", 0.0)
    said = trained()
    monkeypatch.setattr(collection.Collection, "_start_estimate", lambda *args: None)
    silent = trained()
    assert said._estimate is None and said._n_updates == silent._n_updates
    assert_same_state(said.get_parameters(), silent.get_parameters())
    assert_same_state(said.policy.get_rng_state(), silent.policy.get_rng_state())
