"""What the tests share: where things lie, environments and small agents, recorded tensors, runs of the zoo."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
