"""Functions that are written anew because PyTorch's are slow on CPUs: their values and derivatives are the same."""

import pytest
import torch as th
import torch.nn.functional as F

from sb3_mpc.common.execution.kernels import grouped_softmax, mish

SHAPES = [(24,), (5, 24), (2, 3, 24), (0, 24), (2, 0, 24)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [1, 3, 8, 24])
def test_softmax_of_groups(shape: tuple[int, ...], group_size: int) -> None:
    x = th.randn(shape, dtype=th.float64)
    groups = [part.softmax(-1) for part in x.split(group_size, -1)]
    th.testing.assert_close(grouped_softmax(x, group_size), th.cat(groups, -1), rtol=1e-12, atol=0)
    assert th.autograd.gradcheck(lambda x: grouped_softmax(x, group_size), x.requires_grad_())


@pytest.mark.parametrize("dtype", [th.float64, th.float32, th.bfloat16, th.float16])
def test_mish_is_that_of_pytorch(dtype: th.dtype) -> None:
    x = th.tensor([-100.0, -5, -0.5, 0, 0.5, 6, 12, 50], dtype=dtype)
    th.testing.assert_close(mish(x), F.mish(x))


def test_mish_can_be_differentiated_twice() -> None:
    x = th.linspace(-4, 4, 9, dtype=th.float64, requires_grad=True)
    assert th.autograd.gradcheck(mish, x) and th.autograd.gradgradcheck(mish, x)
