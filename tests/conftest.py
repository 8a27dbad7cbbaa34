"""Settings of all tests."""

import torch as th

# The networks of the tests are tiny, and the workers of pytest-xdist share the cores.
th.set_num_threads(1)
