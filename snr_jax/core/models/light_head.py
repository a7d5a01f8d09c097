"""A light head on a transformer's patches, and the whole segmenter (VFM-UDA, arXiv 2406.09896)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from snr_jax.core.augment import RGB_NORMALIZED
from snr_jax.core.models.backbone import Backbone
from snr_jax.core.models.deeplab import NORM_RESTITUTIONS, Output
from snr_jax.core.models.dinov2 import DINOv2, layer_norm
from snr_jax.core.models.layers import Conv, precise_product, resize_half_pixel
from snr_jax.core.models.snr import RestitutionHead

ENLARGED = 1.1  # of an image's side, before it becomes a multiple of a patch's


def encoder_size(size: tuple[int, int], patch: int = 14) -> tuple[int, int]:
    """Height and width at which the transformer sees an image: 1024 → 1120, 80 patches."""
    height, width = (int(side * ENLARGED // patch * patch) for side in size)
    if not height or not width:
        raise ValueError(f"image of {size[0]}x{size[1]}: expected sides of {patch} at least")
    return height, width


def mask_size(size: tuple[int, int], patch: int = 14) -> tuple[int, int]:
    """Height and width in patches of what the transformer sees: the shape of a mask of tokens."""
    height, width = encoder_size(size, patch)
    return height // patch, width // patch


class DoubleSize(nn.Module):
    """Transposed convolution 2x2 of stride 2 without bias, as a product: [N,h,w,I] → [N,2h,2w,O].

    Its kernel [I,4*O] has the four places of a square one after another, row by row.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, h, w, channels = x.shape
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, (channels, 4 * self.features)).astype(self.dtype)
        x = (x.astype(self.dtype) @ kernel).reshape(n, h, w, 2, 2, self.features)
        return x.swapaxes(2, 3).reshape(n, 2 * h, 2 * w, self.features)


class _Classify(nn.Module):
    """1x1 convolution without bias to at least float32 logits."""

    num_classes: int
    pointwise: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, x.shape[-1], self.num_classes)
        kernel = self.param("kernel", nn.initializers.normal(0.1), shape)
        return precise_product(x.astype(self.dtype), kernel[0, 0], pointwise=self.pointwise)


class LightHead(nn.Module):
    """Patches [N,h,w,C] → logits [N,4h,4w,num_classes], at least float32."""

    num_classes: int
    pointwise: str = "product"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = DoubleSize(width // 2, self.dtype, name="upscale_0")(x)
        x = nn.gelu(layer_norm("upscale_1")(x), approximate=False)
        x = DoubleSize(width // 4, self.dtype, name="upscale_3")(x)
        x = layer_norm("upscale_4")(x)
        x = Conv(width // 4, size=3, dtype=self.dtype, name="upscale_5")(x)
        x = layer_norm("upscale_6")(x)
        return _Classify(self.num_classes, self.pointwise, self.dtype, name="out")(x)


def _check(arguments: dict) -> None:
    """Raises ValueError for values that do not fit together, with those that would."""
    width, heads, depth = (arguments[name] for name in ("width", "heads", "depth"))
    if width % 4 or width % heads:
        raise ValueError(f"width is {width}; expected a multiple of 4 and of the {heads} heads")
    if arguments["norm_restitution"] not in NORM_RESTITUTIONS:
        raise ValueError(f"norm_restitution is {arguments['norm_restitution']!r}; expected one of "
                         f"{', '.join(NORM_RESTITUTIONS)}")
    if strange := sorted(set(arguments["snr_after"]) - set(range(depth))):
        raise ValueError(
            f"snr_after has {strange[0]}; expected numbers of blocks, 0 to {depth - 1}")


DINOV2 = Backbone(
    kind="dinov2",
    preprocessing=RGB_NORMALIZED,
    map_size=lambda size: size,  # its logits are the image's: what follows scales these
    architecture=("num_classes", "width", "depth", "heads", "patch", "grid", "registers",
                  "snr_after", "norm_restitution"),
    class_outputs=("head/out/", "restitution_"),
    check=_check,
)


class ViTSegmenter(nn.Module):
    """image float [N,H,W,3] of RGB_NORMALIZED, of any size from 13 pixels on → Output without aux.

    width, depth, heads, patch, grid, registers, snr_after, attention, remat: of `DINOv2`; by
    default ViT-B/14. norm_restitution, restitution_heads, pointwise, affine_snr: as `DeepLab`'s,
    the first for the blocks of snr_after. Parameters stay float32 whatever the dtype.
    """

    backbone = DINOV2
    num_classes: int = 19
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 14
    grid: int = 37
    registers: int = 0
    snr_after: tuple[int, ...] = ()
    norm_restitution: str = "snr"
    restitution_heads: bool = False
    attention: str = "xla"
    pointwise: str = "product"
    affine_snr: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool, output_size: tuple[int, int] | None = None,
        mask: jax.Array | None = None,
    ) -> Output:
        """output_size: height and width of the logits; the image's own by default.

        mask: bool [N,h,w] of `mask_size`, the patches that are hidden. train changes nothing here.
        """
        size = image.shape[1:3]
        with_snr = self.norm_restitution != "none"
        encoder = DINOv2(
            self.width, self.depth, self.heads, self.patch, self.grid, self.registers,
            self.snr_after if with_snr else (), self.norm_restitution == "snr", self.affine_snr,
            self.attention, self.remat, self.dtype, name="encoder",
        )
        tokens = encoder(resize_half_pixel(image, encoder_size(size, self.patch)), mask)
        logits = LightHead(self.num_classes, self.pointwise, self.dtype, name="head")(
            tokens.patches)
        restitution = []
        for i, (features, made) in zip(sorted(self.snr_after), tokens.snr):
            if self.restitution_heads:
                classify = RestitutionHead(
                    self.num_classes, self.pointwise, self.dtype, name=f"restitution_{i}")
                restitution.append(classify(features, made))
        main = resize_half_pixel(logits, output_size or size)
        return Output(main, None, tuple(made for _, made in tokens.snr), tuple(restitution))
