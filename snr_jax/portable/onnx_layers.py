"""Nodes of an ONNX graph, and the layers that several networks have. Channels come first."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

LOGITS = "logits_by_class"  # float32 [N,C,H,W] in every graph, without being its output
_EPSILON = 1e-5  # of batch norm and of instance norm


class Graph:
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


def conv(
    graph: Graph, name: str, x: str, params: dict, norm: dict | None = None,
    stats: dict | None = None, stride: int = 1, dilation: int = 1, padding: int | None = None,
) -> str:
    """A convolution of kernel [k,k,I,O], with the batch norm after it.

    padding: such that a stride of 1 keeps the size, where it is not given.
    """
    kernel = np.float64(params["kernel"])
    bias = np.float64(params.get("bias", np.zeros(kernel.shape[-1])))
    if norm is not None:
        factor = norm["scale"] / np.sqrt(np.float64(stats["var"]) + _EPSILON)  # [O]
        kernel, bias = kernel * factor, norm["bias"] - stats["mean"] * factor
    size = kernel.shape[0]
    return graph.add(
        "Conv", name, x,
        graph.weight(f"{name}.weight", kernel.transpose(3, 2, 0, 1).astype(np.float32)),
        graph.weight(f"{name}.bias", bias.astype(np.float32)),
        kernel_shape=[size] * 2, strides=[stride] * 2, dilations=[dilation] * 2,
        pads=[size // 2 * dilation if padding is None else padding] * 4,
    )


def relu(graph: Graph, x: str) -> str:
    return graph.add("Relu", f"{x}.relu", x)


def snr(graph: Graph, name: str, x: str, params: dict) -> str:
    """F~+ of the features F [N,C,h,w], as snr.py has it; F~ where there is no gate."""
    scale, bias = (graph.weight(f"{name}.{key}", np.float32(params["norm"][key]))
                   for key in ("scale", "bias"))
    normalized = graph.add("InstanceNormalization", f"{name}.norm", x, scale, bias,
                           epsilon=_EPSILON)
    if "fc1" not in params:
        return normalized
    residual = graph.add("Sub", f"{name}.residual", x, normalized)
    pooled = graph.add("GlobalAveragePool", f"{name}.pooled", residual)
    hidden = relu(graph, conv(graph, f"{name}.fc1", pooled, params["fc1"]))
    gate = graph.add("Sigmoid", f"{name}.gate",
                     conv(graph, f"{name}.fc2", hidden, params["fc2"]))
    given_back = graph.add("Mul", f"{name}.relevant", gate, residual)
    return graph.add("Add", name, normalized, given_back)


def resize(graph: Graph, name: str, x: str, shape: str, coordinates: str) -> str:
    """Bilinear, without antialiasing. x [N,C,h,w], shape int64 [4] → [N,C,H,W]."""
    return graph.add("Resize", name, x, "", "", shape, mode="linear",
                     coordinate_transformation_mode=coordinates)
