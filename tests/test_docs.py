"""The Python of the pages in docs/ runs as it stands, page by page, with tiny agents and short training."""

import re
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest

import sb3_mpc
from sb3_mpc import FacTDMPC, zoo
from sb3_mpc.common import imitation
from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.imitation import imitate_planner
from tests.support import ROOT

PAGES = sorted(path for path in (ROOT / "docs" / "pages").glob("*.md") if "```python" in path.read_text())
MAX_STEPS = 60


def python_of(text: str) -> list[str]:
    """
    :param text: page
    :return: its blocks of Python, files that it shows included
    """
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [
        re.sub(r'^--8<-- "(.*)"$', lambda file: (ROOT / file[1]).read_text(), b, flags=re.MULTILINE) for b in blocks
    ]


@pytest.fixture
def run(models, monkeypatch):
    """Run blocks one after the other in one namespace; gives the models that were trained."""
    learn, distill = WorldModelAlgorithm.learn, FacTDMPC._distill
    offline = WorldModelAlgorithm.learn_offline

    def short(self, total_timesteps, *args, **kwargs):
        return learn(self, min(total_timesteps, MAX_STEPS), *args, **kwargs)

    def run(blocks: list[str], name: str) -> list[WorldModelAlgorithm]:
        monkeypatch.setattr(sys, "argv", [name])
        namespace = {"__name__": name}
        for block in blocks:
            exec(compile(block, name, "exec"), namespace)
        return models

    monkeypatch.setattr(WorldModelAlgorithm, "learn", short)
    monkeypatch.setattr(WorldModelAlgorithm, "learn_offline", lambda self, data, *rest: offline(self, data, 3))
    monkeypatch.setattr(imitation, "imitate_planner", lambda model, **rest: imitate_planner(model, 8, 2, 2))
    # an agent of the zoo is not tiny
    monkeypatch.setattr(zoo, "load", lambda algo, name, env=None: sb3_mpc.ALGORITHMS[algo]("MlpPolicy", env or name))
    monkeypatch.setattr(FacTDMPC, "_distill", lambda self, steps, *rest: distill(self, min(steps, 2), *rest))
    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_run(page, run):
    for model in run(python_of(page.read_text()), page.name):
        updates = model._n_updates or getattr(model, "_student_updates", 0)  # of FacTDMPC with a given expert
        assert model.num_timesteps >= MAX_STEPS and updates > 0


@pytest.mark.slow
def test_front_page(run):
    """The swap runs; the other blocks are fragments, or need a suite or OpenGL, and are read only."""
    first, *others = python_of((ROOT / "README.md").read_text())
    assert "was: SAC" in first and len(run([first], "README.md")) == 1
    for block in others:
        compile(block, "README.md", "exec")


def test_every_method_has_a_page_and_every_page_is_in_the_menu():
    menu = (ROOT / "docs" / "mkdocs.yml").read_text()
    texts = {path.name: path.read_text() for path in (ROOT / "docs" / "pages").glob("*.md")}
    for name in texts:
        assert f"- {name}\n" in menu
    for method in sb3_mpc.__all__:
        pages = [text for text in texts.values() if f"::: sb3_mpc.{method}\n" in text]
        assert any("from_sac.md#what-is-supported" in text for text in pages), method


TEXTS = [*ROOT.glob("*.md"), ROOT / "zoo" / "README.md", *(ROOT / "docs" / "pages").glob("*.md")]
HOOK = run_path(str(ROOT / "docs" / "repository.py"))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_hold_in_the_repository(page):
    """Also those that are written in full."""
    for _, _, target, heading in HOOK["LINK"].findall(page.read_text()):
        path = HOOK["local"](page, target)
        if path is None:
            continue
        assert path.exists(), target
        if heading:
            check_heading(path, heading)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_within_a_page_hold(page):
    for heading in re.findall(r"\]\((#[^)]*)\)", page.read_text()):
        check_heading(page, heading)


def check_heading(page: Path, heading: str) -> None:
    """
    :param page: page
    :param heading: anchor of a heading of it, with the leading #
    """
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    assert heading[1:] in [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles], heading


def test_front_page_is_short_and_its_links_also_work_on_pypi():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    for picture, _, target, _ in HOOK["LINK"].findall(text):
        assert target.startswith("https://"), target
        if picture:
            assert target.startswith("https://raw.githubusercontent.com/"), target


def test_links_in_full_lead_to_the_built_pages():
    github = f"https://github.com/{HOOK['REPOSITORY']}"
    raw = f"https://raw.githubusercontent.com/{HOOK['REPOSITORY']}/main"
    links = f"![a]({raw}/envs/suites.png) [b]({github}/blob/main/docs/pages/faq.md#faq) "
    others = f"[c]({github}/tree/main/examples) [d](https://arxiv.org/abs/2310.16828)"
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(ROOT / "zoo" / "README.md")))
    built = HOOK["on_page_markdown"](links + others, page, None, None)
    assert built == "![a](../envs/suites.png) [b](../faq.md#faq) " + others
