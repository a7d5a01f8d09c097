"""The published bottleneck: stride in its first convolution, dilation in its second."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from snr_jax.core.models.batch_norm import BatchNorm
from snr_jax.core.models.layers import Conv

EXPANSION = 4
STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)


class Bottleneck(nn.Module):
    """1x1 → 3x3 → 1x1, each with batch norm, plus the shortcut. [N,h,w,I] → [N,h',w',4*planes].

    stride_in: "conv1" (the published network) or "conv2" (torchvision's ResNet).
    """

    planes: int
    stride: int = 1
    dilation: int = 1
    has_downsample: bool = False
    stride_in: str = "conv1"
    atrous: str = "native"
    pointwise: str = "product"
    bn_axis_name: str | None = None
    bn_sums: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(name: str, features: int, **options) -> Conv:
            forms = {"atrous": self.atrous, "pointwise": self.pointwise}
            return Conv(features, dtype=self.dtype, name=name, **forms, **options)

        def norm(name: str, relu: bool = False) -> BatchNorm:
            return BatchNorm(relu, self.bn_sums, self.bn_axis_name, name=name)

        stride1, stride2 = (self.stride, 1) if self.stride_in == "conv1" else (1, self.stride)
        y = conv("conv1", self.planes, stride=stride1)(x)
        y = norm("bn1", relu=True)(y, train)
        y = conv("conv2", self.planes, size=3, stride=stride2, dilation=self.dilation)(y)
        y = norm("bn2", relu=True)(y, train)
        y = conv("conv3", self.planes * EXPANSION)(y)
        y = norm("bn3")(y, train)
        if self.has_downsample:
            x = conv("downsample_conv", self.planes * EXPANSION, stride=self.stride)(x)
            x = norm("downsample_bn")(x, train)
        return nn.relu(y + x)
