"""A network as an ONNX graph, layer by layer: Conv, LayerNormalization, Resize.

Such a graph, and not one translated from JAX's operations, is what the runtimes know best: channels
come first, a convolution carries its dilation and its batch norm, and DeepLab's image may have any
size. That it computes what the network does is measured at every export (verification.py).
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.portable import onnx_deeplab, onnx_vit
from snr_jax.portable.onnx_layers import LOGITS, Graph
from snr_jax.portable.program import check_size

OPSET, IR = 17, 8  # of 2022, for runtimes that are some years old
# What adds LOGITS of an RGB image to a graph, by the network.
_NETWORKS = {DeepLab: onnx_deeplab.add, ViTSegmenter: onnx_vit.add}
_value = helper.make_tensor_value_info


def create(
    model: DeepLab | ViTSegmenter,
    variables: dict,
    *,
    size: tuple[int, int] | None,
    uint8: bool,
    logits: bool,
    about: Mapping[str, str],
) -> onnx.ModelProto:
    """The checked ONNX model of a network, with the inputs and outputs that `program` describes.

    size: height and width; None: any, and any number of images. about: its metadata. Raises
    UserError for any size of a network that has one at a time.
    """
    check_size(model, size)
    graph = Graph()
    image = graph.add("Cast", "image.float", "image", to=TensorProto.FLOAT) if uint8 else "image"
    image = graph.add("Transpose", "image.channels", image, perm=[0, 3, 1, 2])
    _NETWORKS[type(model)](graph, model, variables, image, size)
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


def _decide(graph: Graph) -> None:
    """Labels, and confidence: the largest softmax is one over the sum of exp(logit - largest)."""
    graph.add("Cast", "labels", graph.add("ArgMax", "class", LOGITS, axis=1, keepdims=0),
              to=TensorProto.UINT8)
    largest = graph.add("ReduceMax", "largest", LOGITS, axes=[1], keepdims=1)
    parts = graph.add("Exp", "parts", graph.add("Sub", "below", LOGITS, largest))
    axis = graph.weight("class_axis", np.array([1], np.int64))
    graph.add("Reciprocal", "confidence", graph.add("ReduceSum", "whole", parts, axis, keepdims=0))
