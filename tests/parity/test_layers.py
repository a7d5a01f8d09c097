"""The building blocks against PyTorch's namesakes, at the sizes where they could differ."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import twin as torch_twin
from snr_jax.core.models.deeplab import AtrousHead
from snr_jax.core.models.layers import conv3x3, max_pool, resize_align_corners
from tests.parity.pair import assert_close, to_nhwc, to_torch


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape)


@pytest.mark.parametrize("size", [(1, 2), (3, 4), (17, 24), (32, 33), (45, 80)])
def test_max_pool(size):
    x = random(1, *size, 3) - 9  # all negative: zeros as padding would show
    ours, theirs = max_pool(x), F.max_pool2d(to_torch(x), 3, 2, 1, ceil_mode=True)
    np.testing.assert_array_equal(ours, to_nhwc(theirs))


@pytest.mark.parametrize(("size", "out"), [
    ((9, 13), (65, 97)), ((5, 8), (5, 8)), ((1, 4), (3, 1)), ((12, 7), (6, 5))])
def test_resize(size, out):
    x = random(2, *size, 3)
    theirs = to_torch(x).requires_grad_()
    resized = F.interpolate(theirs, out, mode="bilinear", align_corners=True)
    weight = random(2, *out, 3)
    gradient, = torch.autograd.grad((resized * to_torch(weight)).sum(), theirs)
    ours, pullback = jax.vjp(lambda x: resize_align_corners(x, out), x)
    assert_close({"y": ours, "dx": pullback(weight)[0]},
                 {"y": to_nhwc(resized), "dx": to_nhwc(gradient)}, 1e-12)


@pytest.mark.parametrize("atrous", ["native", "space_to_batch", "weight_gradient"])
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_conv3x3(dilation, atrous):
    x, kernel = random(2, 9, 13, 3), random(3, 3, 3, 4)
    theirs = F.conv2d(to_torch(x), torch.from_numpy(kernel.transpose(3, 2, 0, 1)),
                      padding=dilation, dilation=dilation)
    assert_close({"y": conv3x3(x, kernel, dilation, atrous=atrous)}, {"y": to_nhwc(theirs)}, 1e-12)


@pytest.mark.parametrize("branches", [2, 4])
@pytest.mark.parametrize("size", [(5, 7), (13, 29), (26, 25)])
def test_head(branches, size):
    twin = torch_twin.Head(8, 3, branches).double()
    params = {
        f"conv2d_list_{i}": {"kernel": conv.weight.detach().numpy().transpose(2, 3, 1, 0),
                             "bias": conv.bias.detach().numpy()}
        for i, conv in enumerate(twin.conv2d_list)
    }
    x = random(2, *size, 8)
    head = AtrousHead(3, branches=branches, dtype=np.float64)
    ours = jax.jit(head.apply)({"params": params}, x)
    assert_close({"y": ours}, {"y": to_nhwc(twin(to_torch(x), size))}, 1e-12)
