"""ResNet DeepLab-v2 with SNR blocks: output stride 8, a main and an auxiliary head."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from snr_jax.core.augment import BGR_MINUS_MEAN, expose
from snr_jax.core.models.backbone import Backbone
from snr_jax.core.models.batch_norm import BatchNorm
from snr_jax.core.models.layers import (
    Conv,
    bias_init,
    max_pool,
    precise_product,
    resize_align_corners,
)
from snr_jax.core.models.resnet import DILATIONS, STRIDES, Bottleneck
from snr_jax.core.models.snr import SNR, RestitutionHead, SNRFeatures

NORM_RESTITUTIONS = ("none", "in", "snr")
HEAD_DILATIONS = (6, 12, 18, 24)
LEAST = 33  # pixels a side of what it is made to see


class Output(NamedTuple):
    """Logits are at least float32, upsampled to [N,H,W,C]."""

    main: jax.Array
    aux: jax.Array
    snr: tuple[SNRFeatures, ...]  # one per SNR block
    restitution: tuple[tuple[jax.Array, jax.Array, jax.Array], ...]  # logits of F~+, F~, F~-


class AtrousHead(nn.Module):
    """Sum of dilated 3x3 convolutions to the classes. [N,h,w,I] → [N,h,w,num_classes].

    All four branches have parameters, as every published checkpoint; the first `branches` of them
    (dilations 6, 12, 18, 24) take part. One product gives every branch and tap, which are then
    shifted and added: convolutions to 19 channels are slow everywhere.
    """

    num_classes: int
    branches: int = 2
    pointwise: str = "product"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        shape = (3, 3, channels, self.num_classes)
        kernels, biases = [], []
        for i in range(len(HEAD_DILATIONS)):
            branch = _BranchParams(shape, name=f"conv2d_list_{i}")()
            kernels.append(branch[0])
            biases.append(branch[1])
        kernels, biases = kernels[: self.branches], biases[: self.branches]
        taps = jnp.stack(kernels).reshape(-1, channels, self.num_classes)  # [branches*9, I, C]
        taps = taps.transpose(1, 0, 2).reshape(channels, -1)
        product = precise_product(x.astype(self.dtype), taps, pointwise=self.pointwise)
        shifts = [
            (dy, dx)
            for d in HEAD_DILATIONS[: self.branches]
            for dy in (-d, 0, d)
            for dx in (-d, 0, d)
        ]
        logits = sum(biases)
        for (dy, dx), tap in zip(shifts, jnp.split(product, len(shifts), -1), strict=True):
            # Moves the map by (dy, dx): a negative padding cuts off, a positive one adds zeros.
            zero = jnp.zeros([], tap.dtype)
            logits = logits + lax.pad(tap, zero, ((0, 0, 0), (-dy, dy, 0), (-dx, dx, 0), (0, 0, 0)))
        return logits


class _BranchParams(nn.Module):
    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        fan_in = self.shape[0] * self.shape[1] * self.shape[2]
        return (
            self.param("kernel", nn.initializers.normal(0.01), self.shape),
            self.param("bias", bias_init(fan_in), self.shape[-1:]),
        )


def map_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the logits before upsampling, for an image of that height and width."""

    def halved_three_times(n: int) -> int:
        pooled = -(-n // 2) // 2 + 1  # max_pool, after a convolution of stride 2
        return -(-pooled // 2)

    return halved_three_times(size[0]), halved_three_times(size[1])


def _check(arguments: dict) -> None:
    """Raises ValueError for an option value that does not exist, with those that do."""
    for name, legal in (
        ("norm_restitution", NORM_RESTITUTIONS),
        ("head_branches", (2, 4)),
        ("stride_in", ("conv1", "conv2")),
        ("exposure", (False, True)),
    ):
        if arguments[name] not in legal:
            expected = ", ".join(map(str, legal))
            raise ValueError(f"{name} is {arguments[name]!r}; expected one of {expected}")


RESNET = Backbone(
    kind="resnet",
    preprocessing=BGR_MINUS_MEAN,
    map_size=map_size,
    architecture=("num_classes", "stage_sizes", "width", "norm_restitution", "head_branches",
                  "stride_in", "exposure"),
    class_outputs=("layer5/", "layer6/", "restitution"),
    check=_check,
)


class DeepLab(nn.Module):
    """image float [N,H,W,3], BGR minus mean (augment.py) → Output.

    exposure: each image is scaled to one mean brightness first (`augment.expose`).
    norm_restitution: "snr", "in" (instance norm alone) or "none", after layer1, layer2, layer3.
    stage_sizes, width: (3,4,23,3) and 64 are ResNet-101. head_branches: 2 as published, or 4.
    restitution_heads: also the 1x1 classifiers of the dual restitution loss (training alone).
    atrous, pointwise: which of the equal forms computes dilated and 1x1 convolutions (layers.py).
    bn_axis_name: mapped axis over which batch norm is synchronised. bn_sums, affine_snr: further
    forms that are equal, see `column_sums` and `SNR`. remat: recompute each block in the backward
    pass to save memory. Parameters and statistics stay float32 whatever the dtype.
    """

    backbone = RESNET
    num_classes: int = 19
    stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    norm_restitution: str = "snr"
    head_branches: int = 2
    stride_in: str = "conv1"
    exposure: bool = False
    restitution_heads: bool = False
    atrous: str = "native"
    pointwise: str = "product"
    bn_axis_name: str | None = None
    bn_sums: str = "xla"
    affine_snr: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool, output_size: tuple[int, int] | None = None
    ) -> Output:
        """output_size: height and width of the logits; the image's own by default."""
        image = expose(image) if self.exposure else image
        block_class = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        x = Conv(self.width, size=7, stride=2, dtype=self.dtype, name="conv1")(image)
        x = BatchNorm(True, self.bn_sums, self.bn_axis_name, name="bn1")(x, train)
        x = max_pool(x)
        snr, restitution, layer3 = [], [], None
        for layer, (size, stride, dilation) in enumerate(
            zip(self.stage_sizes, STRIDES, DILATIONS, strict=True), start=1
        ):
            for i in range(size):
                x = block_class(
                    planes=self.width * 2 ** (layer - 1),
                    stride=stride if i == 0 else 1,
                    dilation=dilation,
                    has_downsample=i == 0,
                    stride_in=self.stride_in,
                    atrous=self.atrous,
                    pointwise=self.pointwise,
                    bn_axis_name=self.bn_axis_name,
                    bn_sums=self.bn_sums,
                    dtype=self.dtype,
                    name=f"layer{layer}_{i}",
                )(x, train)
            if layer <= 3 and self.norm_restitution != "none":
                gated = self.norm_restitution == "snr"
                features = SNR(gated, affine=self.affine_snr, name=f"snr{layer}")(x)
                snr.append(features)
                if self.restitution_heads:
                    classify = RestitutionHead(
                        self.num_classes, self.pointwise, self.dtype, name=f"restitution{layer}"
                    )
                    restitution.append(classify(x, features))
                x = features.restituted
            if layer == 3:
                layer3 = x
        head = {"num_classes": self.num_classes, "branches": self.head_branches,
                "pointwise": self.pointwise}
        aux = AtrousHead(**head, dtype=self.dtype, name="layer5")(layer3)
        main = AtrousHead(**head, dtype=self.dtype, name="layer6")(x)
        size = output_size or image.shape[1:3]
        main, aux = resize_align_corners(main, size), resize_align_corners(aux, size)
        return Output(main, aux, tuple(snr), tuple(restitution))
