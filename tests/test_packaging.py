"""What ``pip install`` gives: one and the same wheel from the repository and its source archive, usable anywhere."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow
BUILD = """
import sys
from setuptools import build_meta
_, target, *kinds = sys.argv  # which the backend changes
for kind in kinds:
    getattr(build_meta, kind)(target)
"""
# Run in a fresh environment, from an empty folder. The site-packages of its own come first on its path.
USE = """
import importlib.metadata, sys
import sb3_mpc, sb3_mpc.envs
from sb3_mpc import zoo
from sb3_mpc.zoo.presets import load_preset
for module in (sb3_mpc, sb3_mpc.envs, zoo):
    assert module.__file__.startswith(sys.prefix), module.__file__
for method in sb3_mpc.METHODS:
    assert load_preset(method, "Pendulum-v1", "cpu")["n_timesteps"] > 0
model = zoo.load("tdmpc2", "dmc/cartpole-swingup-v0", device="cpu")
action, state = model.predict(model.observation_space.sample(), deterministic=True)
assert model.action_space.contains(action) and state is not None
(command,) = importlib.metadata.entry_points(group="console_scripts", name="sb3-mpc")
try: command.load()(["--help"])
except SystemExit as end: assert end.code == 0
"""


def git(*arguments: str) -> list[str]:
    """:return: lines that git prints about this repository"""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def build(source: Path, target: Path, *kinds: str) -> None:
    """
    :param source: folder of the project
    :param target: folder for what is built
    :param kinds: functions of the build backend
    """
    target.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", BUILD, target, *kinds], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:return: folder with the source archive, the wheel of the repository, and in ``again`` the archive's wheel"""
    folder = tmp_path_factory.mktemp("packaging")
    for name in git("ls-files"):
        path = folder / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, path)
    build(folder / "repository", folder / "built", "build_sdist", "build_wheel")
    (archive,) = (folder / "built").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    build(unpacked, folder / "built" / "again", "build_wheel")
    return folder / "built"


def files_of_wheel(folder: Path) -> set[str]:
    """:return: files of the only wheel in a folder"""
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_repository_has_no_links() -> None:
    """Clones without them, as on Windows, would build a package without what they point to."""
    assert [line for line in git("ls-files", "--stage") if line.startswith("120000")] == []


def test_the_wheel_of_the_source_archive_is_that_of_the_repository(built: Path) -> None:
    assert files_of_wheel(built / "again") == files_of_wheel(built)


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    installed_as = {}  # tracked files by the place that they would have in an installation
    for name in git("ls-files", "sb3_mpc", "envs", "zoo"):
        installed_as[name if name.startswith("sb3_mpc/") else f"sb3_mpc/{name}"] = ROOT / name
    files = {name for name in files_of_wheel(built) if ".dist-info/" not in name}
    assert files <= set(installed_as) and not any("studies" in name for name in files)
    parts = dict(
        modules=[n for n in installed_as if n.endswith(".py") and not n.startswith("sb3_mpc/zoo/studies/")],
        presets=[n for n in installed_as if n.startswith("sb3_mpc/zoo/presets/")],
        agents=[n for n in installed_as if n.startswith("sb3_mpc/zoo/") and n.endswith(".safetensors")],
        curves=[n for n in installed_as if n.startswith("sb3_mpc/zoo/curves/published")],
        types=["sb3_mpc/py.typed"],
    )
    for part, names in parts.items():
        assert names and set(names) <= files, f"{part}: {sorted(set(names) - files)} are missing"


def test_an_installed_wheel_works_from_any_folder(built: Path, tmp_path: Path) -> None:
    """In an environment of its own, that borrows the dependencies of this one, but not this repository."""
    fresh, elsewhere = tmp_path / "fresh", tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    python = next(path for path in (fresh / "bin" / "python", fresh / "Scripts" / "python.exe") if path.exists())
    (wheel,) = built.glob("*.whl")
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    # .pth files in folders that are added like this are not read: editable installations are left out
    (own / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    elsewhere.mkdir()
    subprocess.run([python, "-c", USE], cwd=elsewhere, check=True)


def test_a_clone_runs_without_being_installed(tmp_path: Path) -> None:
    """And takes its own suites and zoo, also where another clone is installed."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in tracked:
        if path.endswith(".py") or path == "pyproject.toml":
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, tmp_path / path)
    code = "import sb3_mpc.envs, sb3_mpc.zoo; print(sb3_mpc.__file__, sb3_mpc.envs.__file__, sb3_mpc.zoo.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(file.startswith(str(tmp_path)) for file in found.stdout.split())
