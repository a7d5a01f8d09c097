"""The transformer's segmenter as ONNX nodes: MatMul, LayerNormalization, Softmax, Erf, Resize.

Of one size, so that its positions are resized once, here, and written as a constant. Tokens are
[1,T,C], as in JAX: class token, registers, patches.
"""

import numpy as np

from snr_jax.core.models.dinov2 import DINOv2
from snr_jax.core.models.light_head import ViTSegmenter, encoder_size, mask_size
from snr_jax.portable.onnx_layers import LOGITS, Graph, conv, resize, snr

_EPSILON = 1e-6  # of layer norm


def add(
    graph: Graph, model: ViTSegmenter, variables: dict, image: str, size: tuple[int, int]
) -> None:
    """RGB image float32 [1,3,H,W] of 0..255 → LOGITS. size: H and W."""
    params = variables["params"]
    encoder = params["encoder"]
    grid, first = mask_size(size, model.patch), 1 + model.registers
    x = _enlarged(graph, image, encoder_size(size, model.patch))
    x = _tokens(graph, model, encoder, x, grid)
    for i in range(model.depth):
        x = _block(graph, f"blocks_{i}", x, encoder[f"blocks_{i}"], model.heads)
        if i in model.snr_after and model.norm_restitution != "none":
            others, patches = _split(graph, f"snr_{i}.tokens", x, first, grid)
            maps = _to_maps(graph, f"snr_{i}.maps", patches, grid)
            restituted = snr(graph, f"snr_{i}", maps, encoder[f"snr_{i}"])
            patches = _to_tokens(graph, f"snr_{i}.patches", restituted)
            x = graph.add("Concat", f"snr_{i}.all", others, patches, axis=1)
    _, patches = _split(graph, "patches", x, first, grid)
    patches = _layer_norm(graph, "norm", patches, encoder["norm"])
    maps = _head(graph, params["head"], patches, grid)
    shape = graph.weight("shape", np.array([1, model.num_classes, *size], np.int64))
    resize(graph, LOGITS, maps, shape, "half_pixel")


def _enlarged(graph: Graph, image: str, size: tuple[int, int]) -> str:
    """The network's preprocessing of the image, at the encoder's size."""
    seen = ViTSegmenter.backbone.preprocessing
    for op, name, value in (("Div", "white", seen.unit), ("Sub", "mean", seen.mean),
                            ("Div", "deviation", seen.deviation)):
        by = graph.weight(name, np.float32(value).reshape(1, -1, 1, 1))
        image = graph.add(op, f"image.{name}", image, by)
    shape = graph.weight("image.shape", np.array([1, 3, *size], np.int64))
    return resize(graph, "image.enlarged", image, shape, "half_pixel")


def _tokens(
    graph: Graph, model: ViTSegmenter, params: dict, image: str, grid: tuple[int, int]
) -> str:
    """Image → tokens [1,T,C] with their positions, those of the grid h, w resized."""
    side, proj = model.patch, params["patch_embed"]["proj"]
    kernel = np.reshape(proj["kernel"], (side, side, 3, -1))
    patches = conv(graph, "patch_embed", image, {**proj, "kernel": kernel}, stride=side, padding=0)
    positions = np.asarray(params["pos_embed"])
    resized = DINOv2(grid=model.grid, registers=model.registers).apply(
        {}, positions[:, 1:], *grid, method="_resized")  # [1,h,w,C]
    resized = np.reshape(resized, (1, grid[0] * grid[1], -1))
    patches = graph.add("Add", "patch_embed.positions",
                        _to_tokens(graph, "patch_embed.tokens", patches),
                        graph.weight("pos_embed", resized))
    others = [params["cls_token"] + positions[:, :1]]
    if model.registers:
        others.append(params["register_tokens"])
    return graph.add("Concat", "tokens", graph.weight("others", np.concatenate(others, 1)), patches,
                     axis=1)


def _split(graph: Graph, name: str, x: str, first: int, grid: tuple[int, int]) -> tuple[str, str]:
    """Tokens [1,T,C] → those before the first patch, and the patches [1,h*w,C]."""
    places = np.array([0, first, first + grid[0] * grid[1]], np.int64)
    start, middle, end = (graph.weight(f"{name}.{i}", places[i : i + 1]) for i in range(3))
    axis = graph.weight(f"{name}.axis", np.array([1], np.int64))
    return (graph.add("Slice", f"{name}.others", x, start, middle, axis),
            graph.add("Slice", f"{name}.patches", x, middle, end, axis))


def _reshape(graph: Graph, name: str, x: str, *shape: int) -> str:
    return graph.add("Reshape", name, x, graph.weight(f"{name}.shape", np.array(shape, np.int64)))


def _to_maps(graph: Graph, name: str, x: str, size: tuple[int, int]) -> str:
    """[1,h*w,C] → [1,C,h,w]."""
    x = graph.add("Transpose", f"{name}.channels", x, perm=[0, 2, 1])
    return _reshape(graph, name, x, 1, -1, *size)


def _to_tokens(graph: Graph, name: str, x: str) -> str:
    """[1,C,h,w] → [1,h*w,C]."""
    x = _reshape(graph, f"{name}.channels", x, 1, 0, -1)  # 0: as before
    return graph.add("Transpose", name, x, perm=[0, 2, 1])


def _layer_norm(graph: Graph, name: str, x: str, params: dict) -> str:
    scale, bias = (graph.weight(f"{name}.{key}", np.float32(params[key]))
                   for key in ("scale", "bias"))
    return graph.add("LayerNormalization", name, x, scale, bias, axis=-1, epsilon=_EPSILON)


def _dense(graph: Graph, name: str, x: str, params: dict, scale: dict | None = None) -> str:
    """x [...,I] → [...,O], times a layer scale."""
    factor = np.float64(scale["gamma"]) if scale else 1
    kernel, bias = (np.float32(factor * params[key]) for key in ("kernel", "bias"))
    product = graph.add("MatMul", f"{name}.product", x, graph.weight(f"{name}.weight", kernel))
    return graph.add("Add", name, product, graph.weight(f"{name}.bias", bias))


def _gelu(graph: Graph, name: str, x: str) -> str:
    """x (1 + erf(x / sqrt(2))) / 2."""
    root, one, half = (graph.weight(f"{name}.{key}", np.float32(value)) for key, value in (
        ("root", np.sqrt(2)), ("one", 1), ("half", 0.5)))
    erf = graph.add("Erf", f"{name}.erf", graph.add("Div", f"{name}.over", x, root))
    product = graph.add("Mul", f"{name}.twice", x, graph.add("Add", f"{name}.plus", erf, one))
    return graph.add("Mul", name, product, half)


def _block(graph: Graph, name: str, x: str, params: dict, heads: int) -> str:
    """x + ls1 attn(norm1(x)), then x + ls2 mlp(norm2(x))."""
    seen = _layer_norm(graph, f"{name}.norm1", x, params["norm1"])
    seen = _attention(graph, f"{name}.attn", seen, params["attn"], params["ls1"], heads)
    x = graph.add("Add", f"{name}.seen", x, seen)
    mlp = params["mlp"]
    hidden = _layer_norm(graph, f"{name}.norm2", x, params["norm2"])
    hidden = _dense(graph, f"{name}.mlp.fc1", hidden, mlp["fc1"])
    hidden = _gelu(graph, f"{name}.mlp.gelu", hidden)
    return graph.add("Add", name, x,
                     _dense(graph, f"{name}.mlp.fc2", hidden, mlp["fc2"], params["ls2"]))


def _attention(graph: Graph, name: str, x: str, params: dict, scale: dict, heads: int) -> str:
    """softmax(query key^T / sqrt(d)) value of all tokens [1,T,C], and what follows."""
    width = params["proj"]["kernel"].shape[0]
    parts = []
    for i, (part, order) in enumerate(
        (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
    ):
        place = slice(i * width, (i + 1) * width)
        own = {key: value[..., place] for key, value in params["qkv"].items()}
        found = _dense(graph, f"{name}.{part}", x, own)
        found = _reshape(graph, f"{name}.{part}.heads", found, 1, -1, heads, width // heads)
        parts.append(graph.add("Transpose", f"{name}.{part}.first", found, perm=order))
    query, key, value = parts  # [1,heads,T,d], [1,heads,d,T], [1,heads,T,d]
    root = graph.weight(f"{name}.root", np.float32(np.sqrt(width // heads)))
    weights = graph.add("Div", f"{name}.scaled", graph.add("MatMul", f"{name}.like", query, key),
                        root)
    weights = graph.add("Softmax", f"{name}.weights", weights, axis=-1)
    seen = graph.add("MatMul", f"{name}.found", weights, value)
    seen = graph.add("Transpose", f"{name}.tokens", seen, perm=[0, 2, 1, 3])
    seen = _reshape(graph, f"{name}.joined", seen, 1, -1, width)
    return _dense(graph, f"{name}.proj", seen, params["proj"], scale)


def _head(graph: Graph, params: dict, x: str, grid: tuple[int, int]) -> str:
    """`LightHead`: patches [1,h*w,C] → logits [1,num_classes,4h,4w]."""
    height, width = grid
    x = _double(graph, "upscale_0", x, params["upscale_0"], (height, width))
    x = _layer_norm(graph, "upscale_1", x, params["upscale_1"])
    x = _gelu(graph, "upscale_2", x)
    x = _double(graph, "upscale_3", x, params["upscale_3"], (2 * height, 2 * width))
    x = _layer_norm(graph, "upscale_4", x, params["upscale_4"])
    size = 4 * height, 4 * width
    x = conv(graph, "upscale_5", _to_maps(graph, "upscale_4.maps", x, size), params["upscale_5"])
    x = _layer_norm(graph, "upscale_6", _to_tokens(graph, "upscale_5.tokens", x),
                    params["upscale_6"])
    return conv(graph, "out", _to_maps(graph, "upscale_6.maps", x, size), params["out"])


def _double(graph: Graph, name: str, x: str, params: dict, size: tuple[int, int]) -> str:
    """`DoubleSize`: [1,h*w,I] → [1,4*h*w,O], a map of twice the height and width."""
    kernel = params["kernel"]  # [I,4*O], the places of a square row by row
    features = kernel.shape[1] // 4
    x = graph.add("MatMul", f"{name}.product", x, graph.weight(f"{name}.weight", kernel))
    x = _reshape(graph, f"{name}.rows", x, *size, 2, 2 * features)
    x = graph.add("Transpose", f"{name}.rows.first", x, perm=[0, 2, 1, 3])  # [h,2,w,2*O]
    return _reshape(graph, name, x, 1, -1, features)
