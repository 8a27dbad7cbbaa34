"""Files at the top of the repository that repeat what others say."""

import re
from pathlib import Path

import yaml

import sb3_mpc

ROOT = Path(__file__).parents[1]


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (sb3_mpc.__version__, "MIT")


def test_pre_commit_runs_the_ruff_of_ci():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (ruff,) = [repo["rev"] for repo in hooks["repos"] if "ruff" in repo["repo"]]
    assert f"ruff=={ruff.removeprefix('v')}\n" in (ROOT / ".ci" / "constraints.txt").read_text()


def test_ci_runs_every_python_that_the_package_claims():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = [row["python"] for row in workflow["jobs"]["tests"]["strategy"]["matrix"]["include"]]
    project = (ROOT / "pyproject.toml").read_text()
    assert tested == re.findall(r'"Programming Language :: Python :: (\d+\.\d+)"', project)
    assert f'requires-python = ">={tested[0]}"' in project


def test_ci_calls_targets_that_the_makefile_has():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.findall(r"run: make ([a-z-]+)$", workflow, re.MULTILINE)
    assert called and set(called) <= set(targets)
