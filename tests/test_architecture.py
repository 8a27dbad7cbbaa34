"""The arrows of the house run one way (docs/pages/architecture.md)."""

import ast
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import sb3_mpc
from tests.support import ROOT

FOLDERS = {"sb3_mpc": ROOT / "sb3_mpc", "sb3_mpc.envs": ROOT / "envs", "sb3_mpc.zoo": ROOT / "zoo"}
# Of sb3_mpc.common: each may import those before it
ROOMS = ["processes", "checks", "discount", "estimate", "files", "execution", "buffers", "networks", "planning"]
ROOMS += ["policies", "presets", "tasks", "collection", "offline_training", "persistence", "algorithm", "callbacks"]
ROOMS += ["imitation"]


@functools.cache
def modules() -> dict[str, Path]:
    """:return: the files of the package by the name of their module"""
    found: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """:return: modules of the package that a file imports, at its head or within its functions"""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sb3_mpc":
            known = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules() else node.module for name in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sb3_mpc")


def room(module: str) -> str:
    """:return: the room of ``sb3_mpc.common`` that a module is in"""
    return module.split(".")[2]


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("sb3_mpc.common.")])
def test_common_imports_earlier_rooms_only(module: str) -> None:
    for imported in imports(modules()[module]):
        assert imported.startswith("sb3_mpc.common."), f"{module} imports {imported}"
        allowed = ROOMS[: ROOMS.index(room(module)) + 1]
        assert room(imported) in allowed, f"{module} imports {imported}: {room(module)} is before {room(imported)}"


@pytest.mark.parametrize("method", sb3_mpc.METHODS)
def test_methods_import_common_and_the_method_that_they_extend(method: str) -> None:
    for name in (name for name in modules() if f"{name}.".startswith(f"sb3_mpc.{method}.")):
        for imported in imports(modules()[name]):
            assert imported.startswith(("sb3_mpc.common.", f"sb3_mpc.{method}.", "sb3_mpc.tdmpc2.")), imported


def test_only_the_zoo_imports_data_sets() -> None:
    """Methods know them by the protocol of ``sb3_mpc.common.buffers.sources`` alone."""
    for name, path in modules().items():
        if not name.startswith(("sb3_mpc.offline", "sb3_mpc.zoo")):
            assert not [module for module in imports(path) if module.startswith("sb3_mpc.offline")], name


def test_nothing_in_the_core_imports_suites_or_the_zoo() -> None:
    for name, path in modules().items():
        outside = ("sb3_mpc.envs", "sb3_mpc.zoo")
        if not name.startswith(outside):
            assert not [module for module in imports(path) if module.startswith(outside)], name


def test_suites_import_nothing_but_suites() -> None:
    for name, path in modules().items():
        if name.startswith("sb3_mpc.envs"):
            assert all(module.startswith("sb3_mpc.envs") for module in imports(path)), name


def test_every_package_is_installed() -> None:
    """The list of packages in pyproject.toml, but for the studies, which stay in the repository."""
    listed = (ROOT / "pyproject.toml").read_text().partition("packages = [")[2].partition("]")[0]
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(listed.replace('"', "").replace(",", "").split()) == packages - {"sb3_mpc.zoo.studies"}


def test_dir_shows_the_methods() -> None:
    assert set(sb3_mpc.METHODS.values()) <= set(dir(sb3_mpc)) and set(sb3_mpc.__all__) == set(sb3_mpc.METHODS.values())


@pytest.mark.parametrize("method", sb3_mpc.METHODS)
def test_constructors_agree(method: str) -> None:
    """Each method writes its arguments out, for editors and ``help``; what is TD-MPC2's is as it is there."""
    from_expert = dict.fromkeys(
        ("learning_starts", "batch_size", "gamma", "horizon", "temperature")
        + ("iterations", "num_samples", "num_elites", "num_pi_trajs", "max_std")
    )
    changed: dict[str, dict[str, object]] = {"mbdpo": {"iterations": 19}, "fac_tdmpc": from_expert}
    shared = inspect.signature(sb3_mpc.TDMPC2).parameters
    own = inspect.signature(sb3_mpc.ALGORITHMS[method]).parameters
    assert [name for name in own if name in shared] == list(shared)
    defaults = {name: own[name].default for name in shared if own[name].default != shared[name].default}
    assert defaults == changed.get(method, {})
    assert not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own.values())
