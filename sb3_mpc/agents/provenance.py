"""Provenance of agent files and measurements: commit of this package and versions of its dependencies."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import sb3_mpc


def git_commit() -> str | None:
    """:return: commit of this package, with "-dirty" if there are uncommitted changes; None if it is not a checkout"""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package: git would find the user's own project
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def package_versions() -> dict[str, str]:
    """:return: versions of this package and of the packages that an agent depends on"""
    packages = {name: version(name.replace("_", "-")) for name in ("torch", "stable_baselines3", "gymnasium", "numpy")}
    return dict(sb3_mpc=sb3_mpc.__version__, **packages)
