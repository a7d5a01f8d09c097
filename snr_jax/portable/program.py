"""What an exported network computes, and what its file says of it.

image [N,H,W,3] RGB, uint8 or float32 of 0..255, in; out come labels uint8 [N,H,W], the places of
their classes, confidence float32 [N,H,W], their softmax probabilities, and, where asked for, logits
float32 [N,H,W,C].
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from snr_jax.core.augment import to_network_input
from snr_jax.core.errors import UserError
from snr_jax.core.labels import Classes, class_names
from snr_jax.core.models.create import NETWORKS, Network, changed
from snr_jax.core.models.deeplab import LEAST
from snr_jax.core.models.light_head import ViTSegmenter

PLATFORMS = ("cpu", "cuda")

Size = tuple[int, int]  # height, width
Program = Callable[[jax.Array], dict[str, jax.Array]]  # image → outputs by name


def plain(model: Network) -> Network:
    """The network in float32 and in the forms that every platform computes, at symbolic sizes."""
    # A strided product and a strided 3x3 convolution beside it are not known to be equally large.
    strided = getattr(model, "stride_in", "conv1") != "conv1"
    return changed(model, dtype=jnp.float32, atrous="native", affine_snr=False, bn_sums="xla",
                   pointwise="convolution" if strided else "product", attention="xla")


def check_size(model: Network, size: Size | None) -> None:
    """Raises UserError where a program for images of any size cannot be written (size: None)."""
    if size is None and isinstance(model, ViTSegmenter):
        raise UserError("--dynamic: a vision transformer's positions and patches are written for "
                        "one size of the image. Leave it out; --size HEIGHT,WIDTH alone chooses "
                        "another than that of the training")


def make_program(model: Network, variables: dict, *, logits: bool) -> Program:
    """The network with all that comes before and after it."""

    def program(image: jax.Array) -> dict[str, jax.Array]:
        seen = to_network_input(image, model.backbone.preprocessing)
        scores = model.apply(variables, seen, train=False).main
        found = {"labels": scores.argmax(-1).astype(jnp.uint8),
                 "confidence": jax.nn.softmax(scores).max(-1)}
        return {**found, "logits": scores} if logits else found

    return program


def stablehlo(program: Program, *, size: Size | None, uint8: bool) -> bytes:
    """The program as `jax.export` serialises it, for a CPU and for CUDA.

    size: height and width; None: any of at least LEAST, and any number of images.
    """
    shape = (1, *size, 3) if size else export.symbolic_shape(
        "n, height, width, 3", constraints=[f"height >= {LEAST}", f"width >= {LEAST}"])
    image = jax.ShapeDtypeStruct(shape, np.uint8 if uint8 else np.float32)
    return bytes(export.export(jax.jit(program), platforms=PLATFORMS)(image).serialize())


def about(
    meta: dict, known: Classes, *, size: Size | None, seen: Size, uint8: bool, logits: bool
) -> dict:
    """What a user without this package has to know, for JSON.

    meta: of the checkpoint. size: of the image, None: any. seen: where the network is at its best.
    """
    shape = f"1,{size[0]},{size[1]}" if size else "n,height,width"
    outputs = {
        "labels": f"uint8 [{shape}]: the place of each pixel's class in `classes`",
        "confidence": f"float32 [{shape}]: the probability of that class, 0 to 1",
    }
    if logits:
        outputs["logits"] = f"float32 [{shape},{len(known)}]: before the softmax"
    return {
        "inputs": {"image": f"{'uint8' if uint8 else 'float32'} [{shape},3]: RGB, 0 to 255"},
        "outputs": outputs,
        "size": seen,
        "any_size": size is None,
        "classes": class_names(known),
        "colors": [c.color for c in known],
        "preprocessing": f"inside the program: {_told(meta['model'])}",
        "network": meta["model"],
    }


def _told(model: Mapping) -> str:
    """The preprocessing of a network, in words."""
    known = NETWORKS[model["backbone"]].backbone.preprocessing
    unit = "" if known.unit == 1 else f" / {known.unit:g}"
    mean, deviation = (", ".join(f"{value:.3f}" for value in values)
                       for values in (known.mean, known.deviation))
    over = f", over deviation {deviation}" if set(known.deviation) != {1} else ""
    exposure = ", at one mean brightness" if model.get("exposure") else ""
    return f"{known.channels}{unit} minus mean {mean}{over}{exposure}"
