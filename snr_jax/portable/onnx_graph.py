"""DeepLab as an ONNX graph, layer by layer: Conv, MaxPool, InstanceNormalization, Resize.

Such a graph, and not one translated from JAX's operations, is what the runtimes know best: channels
come first, a convolution carries its dilation and its batch norm, and the image's size need not be
known. That it computes what the network does is measured at every export (verification.py).
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snr_jax.core.augment import MEAN_BGR
from snr_jax.core.models.deeplab import HEAD_DILATIONS, DeepLab
from snr_jax.core.models.resnet import DILATIONS, STRIDES

OPSET, IR = 17, 8  # of 2022, for runtimes that are some years old
LOGITS = "logits_by_class"  # float32 [N,C,H,W] in every graph, without being its output
_EPSILON = 1e-5  # of batch norm and of instance norm
_value = helper.make_tensor_value_info


class _Graph:
    """Nodes and weights in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        """The name of a node's output, which is the node's own."""
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str, value: np.ndarray) -> str:
        """The name of a constant, in whose dtype it is stored."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def create(
    model: DeepLab,
    variables: dict,
    *,
    size: tuple[int, int] | None,
    uint8: bool,
    logits: bool,
    about: Mapping[str, str],
) -> onnx.ModelProto:
    """The checked ONNX model of a network, with the inputs and outputs that `programs` describes.

    size: height and width; None: any, and any number of images. about: its metadata.
    """
    graph = _Graph()
    image = graph.add("Cast", "image.float", "image", to=TensorProto.FLOAT) if uint8 else "image"
    image = graph.add("Transpose", "image.channels", image, perm=[0, 3, 1, 2])
    maps = _network(graph, model, variables, image)
    pixels = _sizes(graph, image, maps, model.num_classes, size)
    graph.add("Resize", LOGITS, maps, "", "", pixels, mode="linear",
              coordinate_transformation_mode="align_corners")
    _decide(graph)
    shape = [1, *size] if size else ["n", "height", "width"]
    outputs = [_value("labels", TensorProto.UINT8, shape),
               _value("confidence", TensorProto.FLOAT, shape)]
    if logits:
        graph.add("Transpose", "logits", LOGITS, perm=[0, 2, 3, 1])
        outputs.append(_value("logits", TensorProto.FLOAT, [*shape, model.num_classes]))
    inputs = [_value("image", TensorProto.UINT8 if uint8 else TensorProto.FLOAT, [*shape, 3])]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "snr_jax", inputs, outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="snr_jax",
    )
    helper.set_model_props(made, dict(about))
    onnx.checker.check_model(made, full_check=True)
    return made


def _sizes(
    graph: _Graph, image: str, maps: str, classes: int, size: tuple[int, int] | None
) -> str:
    """The shape of the logits at the image's size, int64 [4]."""
    if size:
        return graph.weight("sizes", np.array([1, classes, *size], np.int64))
    shapes = graph.add("Shape", "maps.shape", maps, end=2), graph.add(
        "Shape", "image.shape", image, start=2)
    return graph.add("Concat", "sizes", *shapes, axis=0)


def _decide(graph: _Graph) -> None:
    """Labels, and confidence: the largest softmax is one over the sum of exp(logit - largest)."""
    graph.add("Cast", "labels", graph.add("ArgMax", "class", LOGITS, axis=1, keepdims=0),
              to=TensorProto.UINT8)
    largest = graph.add("ReduceMax", "largest", LOGITS, axes=[1], keepdims=1)
    parts = graph.add("Exp", "parts", graph.add("Sub", "below", LOGITS, largest))
    axis = graph.weight("class_axis", np.array([1], np.int64))
    graph.add("Reciprocal", "confidence", graph.add("ReduceSum", "whole", parts, axis, keepdims=0))


def _network(graph: _Graph, model: DeepLab, variables: dict, x: str) -> str:
    """RGB image float32 [N,3,H,W] of 0..255 → logits of the main head [N,C,h,w]."""
    params, stats = variables["params"], variables["batch_stats"]
    x = _centred(graph, x, model.exposure)
    first = {"kernel": params["conv1"]["kernel"][:, :, ::-1]}  # which was for BGR
    x = _relu(graph, _conv(graph, "conv1", x, first, params["bn1"], stats["bn1"], stride=2))
    # As in ceil mode: an even size reads the second padded row, an odd one never does.
    x = graph.add("MaxPool", "maxpool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 2, 2])
    for layer, blocks in enumerate(model.stage_sizes, start=1):
        for i in range(blocks):
            name = f"layer{layer}_{i}"
            x = _bottleneck(graph, name, x, params[name], stats[name], model.stride_in,
                            STRIDES[layer - 1] if i == 0 else 1, DILATIONS[layer - 1])
        if layer <= 3 and model.norm_restitution != "none":
            x = _snr(graph, f"snr{layer}", x, params[f"snr{layer}"])
    branches = [
        _conv(graph, f"layer6.{i}", x, params["layer6"][f"conv2d_list_{i}"], dilation=dilation)
        for i, dilation in enumerate(HEAD_DILATIONS[: model.head_branches])
    ]
    return graph.add("Sum", "layer6", *branches)


def _centred(graph: _Graph, x: str, exposure: bool) -> str:
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


def _conv(
    graph: _Graph, name: str, x: str, params: dict, norm: dict | None = None,
    stats: dict | None = None, stride: int = 1, dilation: int = 1,
) -> str:
    """A convolution of kernel [k,k,I,O], padded as the network's, with the batch norm after it."""
    kernel, bias = np.float64(params["kernel"]), np.float64(params.get("bias", 0))
    if norm is not None:
        factor = norm["scale"] / np.sqrt(np.float64(stats["var"]) + _EPSILON)  # [O]
        kernel, bias = kernel * factor, norm["bias"] - stats["mean"] * factor
    size = kernel.shape[0]
    return graph.add(
        "Conv", name, x,
        graph.weight(f"{name}.weight", kernel.transpose(3, 2, 0, 1).astype(np.float32)),
        graph.weight(f"{name}.bias", bias.astype(np.float32)),
        kernel_shape=[size] * 2, strides=[stride] * 2, dilations=[dilation] * 2,
        pads=[size // 2 * dilation] * 4,
    )


def _relu(graph: _Graph, x: str) -> str:
    return graph.add("Relu", f"{x}.relu", x)


def _bottleneck(
    graph: _Graph, name: str, x: str, params: dict, stats: dict, stride_in: str, stride: int,
    dilation: int,
) -> str:
    """A block as resnet.py's. [N,I,h,w] → [N,4*planes,h',w']."""

    def conv(number: str, norm: str, x: str, **options: int) -> str:
        return _conv(graph, f"{name}.{number}", x, params[number], params[norm], stats[norm],
                     **options)

    first, second = (stride, 1) if stride_in == "conv1" else (1, stride)
    y = _relu(graph, conv("conv1", "bn1", x, stride=first))
    y = _relu(graph, conv("conv2", "bn2", y, stride=second, dilation=dilation))
    y = conv("conv3", "bn3", y)
    if "downsample_conv" in params:
        x = conv("downsample_conv", "downsample_bn", x, stride=stride)
    return _relu(graph, graph.add("Add", name, y, x))


def _snr(graph: _Graph, name: str, x: str, params: dict) -> str:
    """F~+ of the features F [N,C,h,w], as snr.py has it; F~ where there is no gate."""
    scale, bias = (graph.weight(f"{name}.{key}", np.float32(params["norm"][key]))
                   for key in ("scale", "bias"))
    normalized = graph.add("InstanceNormalization", f"{name}.norm", x, scale, bias,
                           epsilon=_EPSILON)
    if "fc1" not in params:
        return normalized
    residual = graph.add("Sub", f"{name}.residual", x, normalized)
    pooled = graph.add("GlobalAveragePool", f"{name}.pooled", residual)
    hidden = _relu(graph, _conv(graph, f"{name}.fc1", pooled, params["fc1"]))
    gate = graph.add("Sigmoid", f"{name}.gate",
                     _conv(graph, f"{name}.fc2", hidden, params["fc2"]))
    given_back = graph.add("Mul", f"{name}.relevant", gate, residual)
    return graph.add("Add", name, normalized, given_back)
