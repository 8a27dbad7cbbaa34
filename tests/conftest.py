"""Settings of all tests."""

import os

# The networks of the tests are tiny, and the workers of pytest-xdist share the cores. By environment variable, so that
# the process that only hands out the tests need not import torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
