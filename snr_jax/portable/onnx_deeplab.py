"""DeepLab as ONNX nodes: Conv, MaxPool, InstanceNormalization, Resize."""

import numpy as np

from snr_jax.core.augment import MEAN_BGR
from snr_jax.core.models.deeplab import HEAD_DILATIONS, DeepLab
from snr_jax.core.models.resnet import DILATIONS, STRIDES
from snr_jax.portable.onnx_layers import LOGITS, Graph, conv, relu, resize, snr


def add(
    graph: Graph, model: DeepLab, variables: dict, image: str, size: tuple[int, int] | None
) -> None:
    """RGB image float32 [N,3,H,W] of 0..255 → LOGITS of the main head. size: H and W, None: any."""
    params, stats = variables["params"], variables["batch_stats"]
    x = _centred(graph, image, model.exposure)
    first = {"kernel": params["conv1"]["kernel"][:, :, ::-1]}  # which was for BGR
    x = relu(graph, conv(graph, "conv1", x, first, params["bn1"], stats["bn1"], stride=2))
    # As in ceil mode: an even size reads the second padded row, an odd one never does.
    x = graph.add("MaxPool", "maxpool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 2, 2])
    for layer, blocks in enumerate(model.stage_sizes, start=1):
        for i in range(blocks):
            name = f"layer{layer}_{i}"
            x = _bottleneck(graph, name, x, params[name], stats[name], model.stride_in,
                            STRIDES[layer - 1] if i == 0 else 1, DILATIONS[layer - 1])
        if layer <= 3 and model.norm_restitution != "none":
            x = snr(graph, f"snr{layer}", x, params[f"snr{layer}"])
    branches = [
        conv(graph, f"layer6.{i}", x, params["layer6"][f"conv2d_list_{i}"], dilation=dilation)
        for i, dilation in enumerate(HEAD_DILATIONS[: model.head_branches])
    ]
    maps = graph.add("Sum", "layer6", *branches)
    shape = _shape(graph, image, maps, model.num_classes, size)
    resize(graph, LOGITS, maps, shape, "align_corners")


def _centred(graph: Graph, x: str, exposure: bool) -> str:
    """RGB [N,3,H,W] minus mean; exposure: at one mean brightness first, as `augment.expose`."""
    mean = np.array(MEAN_BGR[::-1], np.float32)
    if exposure:
        found = graph.add("ReduceMean", "brightness", x, axes=[1, 2, 3], keepdims=1)
        one = graph.weight("brightness.least", np.array(1, np.float32))
        found = graph.add("Max", "brightness.bounded", found, one)
        wanted = graph.weight("brightness.wanted", mean.mean())
        x = graph.add("Mul", "exposed", x, graph.add("Div", "gain", wanted, found))
        x = graph.add("Min", "exposed.bounded", x, graph.weight("white", np.array(255, np.float32)))
    return graph.add("Sub", "centred", x, graph.weight("mean", mean.reshape(1, 3, 1, 1)))


def _bottleneck(
    graph: Graph, name: str, x: str, params: dict, stats: dict, stride_in: str, stride: int,
    dilation: int,
) -> str:
    """A block as resnet.py's. [N,I,h,w] → [N,4*planes,h',w']."""

    def layer(number: str, norm: str, x: str, **options: int) -> str:
        return conv(graph, f"{name}.{number}", x, params[number], params[norm], stats[norm],
                    **options)

    first, second = (stride, 1) if stride_in == "conv1" else (1, stride)
    y = relu(graph, layer("conv1", "bn1", x, stride=first))
    y = relu(graph, layer("conv2", "bn2", y, stride=second, dilation=dilation))
    y = layer("conv3", "bn3", y)
    if "downsample_conv" in params:
        x = layer("downsample_conv", "downsample_bn", x, stride=stride)
    return relu(graph, graph.add("Add", name, y, x))


def _shape(
    graph: Graph, image: str, maps: str, classes: int, size: tuple[int, int] | None
) -> str:
    """The shape of the logits at the image's size, int64 [4]."""
    if size:
        return graph.weight("sizes", np.array([1, classes, *size], np.int64))
    shapes = graph.add("Shape", "maps.shape", maps, end=2), graph.add(
        "Shape", "image.shape", image, start=2)
    return graph.add("Concat", "sizes", *shapes, axis=0)
