"""Names and layouts of the published checkpoints against the variables of the model."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core.errors import UserError
from snr_jax.core.models.deeplab import DeepLab
from snr_jax.core.state import initial_variables, variable_shapes
from snr_jax.weights import torch_names

TINY = {"stage_sizes": (1, 2, 1, 1), "width": 4, "num_classes": 5}
RESNET101 = {"stage_sizes": (3, 4, 23, 3), "width": 64, "num_classes": 19}
GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"


def published_shapes(*, stage_sizes, width, num_classes, variant="snr"):
    """{PyTorch name: shape} of the published network in PyTorch's order, from method alone."""
    shapes = {}

    def conv(name, out, into, size, bias=False):
        shapes[f"{name}.weight"] = (out, into, size, size)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name, channels, statistics=True):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)
        if statistics:
            shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (channels,)
            shapes[f"{name}.num_batches_tracked"] = ()

    conv("conv1", width, 3, 7)
    norm("bn1", width)
    channels = width
    for layer, blocks in enumerate(stage_sizes, start=1):
        planes = width * 2 ** (layer - 1)
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            conv(f"{name}.conv1", planes, channels, 1)
            norm(f"{name}.bn1", planes)
            conv(f"{name}.conv2", planes, planes, 3)
            norm(f"{name}.bn2", planes)
            conv(f"{name}.conv3", 4 * planes, planes, 1)
            norm(f"{name}.bn3", 4 * planes)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * planes, channels, 1)
                norm(f"{name}.downsample.1", 4 * planes)
            channels = 4 * planes
    for head, into in (("layer5", channels // 2), ("layer6", channels)):
        for branch in range(4):
            conv(f"{head}.conv2d_list.{branch}", num_classes, into, 3, bias=True)
    widths = [4 * width * 2**k for k in range(3)]
    if variant in ("snr", "in"):
        for k, features in enumerate(widths, start=1):
            norm(f"IN{k}", features, statistics=False)
    if variant == "snr":
        for k, features in enumerate(widths, start=1):
            conv(f"style_reid_laye{k}.fc1", features // 16, features, 1, bias=True)
            conv(f"style_reid_laye{k}.fc2", features, features // 16, 1, bias=True)
    return shapes


def random_state_dict(dtype=np.float32, **architecture):
    random = np.random.default_rng(0)
    return {name: np.zeros((), np.int64) if name.endswith("tracked")
            else np.asarray(random.standard_normal(shape), dtype)
            for name, shape in published_shapes(**architecture).items()}


def assert_same(left, right):
    assert list(left) == list(right)
    for name, value in left.items():
        other = right[name]
        assert (value.dtype, value.shape) == (other.dtype, other.shape), name
        assert value.tobytes() == other.tobytes(), name


@pytest.mark.parametrize(("variant", "tensors", "numbers"),
                         [("none", 640, 44_601_560), ("snr", 658, 44_779_080)])
def test_full_network_has_the_published_names_and_sizes(variant, tensors, numbers):
    shapes = published_shapes(**RESNET101, variant=variant)
    assert len(shapes) == tensors
    zeros = {name: np.zeros(shape, np.int8) for name, shape in shapes.items()}
    variables, unused = torch_names.from_torch(zeros)
    assert unused == []
    found = {path: value.shape for path, value in flatten_dict(variables).items()}
    assert sum(np.prod(s) for path, s in found.items() if path[0] == "params") == numbers
    model = flatten_dict(variable_shapes(DeepLab(**RESNET101, norm_restitution=variant)))
    assert found == {path: value.shape for path, value in model.items()}
    back = torch_names.to_torch(variables)
    assert [(name, value.shape) for name, value in back.items()] == list(shapes.items())
    assert torch_names.infer_architecture(zeros) == {**RESNET101, "norm_restitution": variant}


@pytest.mark.parametrize("kind", ["baseline", "snr"])
def test_names_agree_with_the_recorded_ones(kind):
    path = GOLDEN / f"shapes_{kind}.json"
    if not path.exists():
        pytest.skip("the recorded names of the published code are not beside the project")
    recorded = {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    variant = {"baseline": "none"}.get(kind, kind)
    expected = published_shapes(**RESNET101, variant=variant)
    assert list(recorded.items()) == list(expected.items())


@pytest.mark.parametrize("variant", ["snr", "in", "none"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_is_bit_identical(variant, dtype):
    state_dict = random_state_dict(dtype, **TINY, variant=variant)
    variables, unused = torch_names.from_torch(state_dict)
    assert unused == []
    assert_same(torch_names.to_torch(variables), state_dict)
    again, _ = torch_names.from_torch(torch_names.to_torch(variables))
    assert_same(flatten_dict(again, sep="/"), flatten_dict(variables, sep="/"))


def test_each_tensor_lands_where_it_belongs():
    state_dict = random_state_dict(**TINY)
    variables, _ = torch_names.from_torch(state_dict)
    params, stats = variables["params"], variables["batch_stats"]
    by_hand = {
        "conv1.weight": params["conv1"]["kernel"],
        "bn1.weight": params["bn1"]["scale"],
        "bn1.bias": params["bn1"]["bias"],
        "bn1.running_mean": stats["bn1"]["mean"],
        "layer2.1.bn3.running_var": stats["layer2_1"]["bn3"]["var"],
        "layer2.0.downsample.0.weight": params["layer2_0"]["downsample_conv"]["kernel"],
        "layer2.0.downsample.1.bias": params["layer2_0"]["downsample_bn"]["bias"],
        "layer2.0.downsample.1.running_mean": stats["layer2_0"]["downsample_bn"]["mean"],
        "layer5.conv2d_list.3.weight": params["layer5"]["conv2d_list_3"]["kernel"],
        "layer6.conv2d_list.0.bias": params["layer6"]["conv2d_list_0"]["bias"],
        "IN2.weight": params["snr2"]["norm"]["scale"],
        "style_reid_laye3.fc1.weight": params["snr3"]["fc1"]["kernel"],
        "style_reid_laye1.fc2.bias": params["snr1"]["fc2"]["bias"],
    }
    for name, ours in by_hand.items():
        theirs = state_dict[name]
        expected = np.moveaxis(theirs, (0, 1), (3, 2)) if theirs.ndim == 4 else theirs
        np.testing.assert_array_equal(ours, expected, err_msg=name)


def test_prefixes_are_stripped_and_collisions_refused():
    state_dict = random_state_dict(**TINY)
    plain, _ = torch_names.from_torch(state_dict)
    for prefix in ("module.", "Scale.", "module.Scale.", "module.module.", "_orig_mod.module.",
                   "model.backbone.", "backbone._orig_mod.model."):
        prefixed = {prefix + name: value for name, value in state_dict.items()}
        variables, unused = torch_names.from_torch(prefixed)
        assert unused == []
        assert_same(flatten_dict(variables, sep="/"), flatten_dict(plain, sep="/"))
    # Inside a name the same letters are no prefix.
    assert list(torch_names.strip_prefixes({"a.module.b": np.zeros(1)})) == ["a.module.b"]
    for prefix in ("module.", "_orig_mod.", "model.", "backbone.module."):
        with pytest.raises(UserError, match=rf"'bn1.bias'.*'{prefix}bn1.bias'"):
            torch_names.from_torch({**state_dict, f"{prefix}bn1.bias": state_dict["bn1.bias"]})


def test_strange_names_are_unused_and_counters_ignored():
    state_dict = random_state_dict(**TINY)
    strange = {"fc.weight": np.zeros((10, 4)), "layer1.0.conv4.weight": np.zeros(1),
               "bn1.weights": np.zeros(1), "xconv1.weight": np.zeros(1)}
    _, unused = torch_names.from_torch(state_dict | strange)
    assert unused == list(strange)


def test_single_head_networks_lose_their_layer5():
    """The published initial weights: layer5 is a head of 21 classes on layer4's output."""
    state_dict = random_state_dict(**TINY, variant="none")
    body = {name: v for name, v in state_dict.items() if not name.startswith(("layer5", "layer6"))}
    head = {f"layer5.conv2d_list.{i}.{leaf}": np.zeros(shape) for i in range(4)
            for leaf, shape in (("weight", (21, 128, 3, 3)), ("bias", (21,)))}
    prefixed = {f"Scale.{name}": value for name, value in (body | head).items()}
    variables, unused = torch_names.from_torch(prefixed)
    assert unused == list(head)
    assert "layer5" not in variables["params"]
    assert torch_names.infer_architecture(prefixed)["num_classes"] is None
    assert torch_names.foreign_head(state_dict) == []


@pytest.mark.parametrize("variant", ["snr", "in", "none"])
def test_architecture_is_read_off_the_shapes(variant):
    state_dict = random_state_dict(**TINY, variant=variant)
    found = torch_names.infer_architecture(state_dict)
    assert found == {**TINY, "norm_restitution": variant}


def test_another_network_has_no_architecture():
    with pytest.raises(UserError, match=r"conv1\.weight.*features\.0\.weight"):
        torch_names.infer_architecture({"features.0.weight": np.zeros((4, 3, 3, 3))})
    state_dict = random_state_dict(**TINY)
    gap = {name: v for name, v in state_dict.items() if not name.startswith("layer2.0.")}
    with pytest.raises(UserError, match=r"layer2.*\[1\]"):
        torch_names.infer_architecture(gap)
    with pytest.raises(UserError, match=r"layer1\.0\.conv2\.weight.*\(3,\)"):
        torch_names.from_torch({"layer1.0.conv2.weight": np.zeros(3)})


def test_variables_without_a_published_name():
    variables = initial_variables(DeepLab(**TINY, restitution_heads=True), 0)
    assert "restitution1" in variables["params"]
    assert list(torch_names.to_torch(variables)) == list(published_shapes(**TINY))
    with pytest.raises(UserError, match="params/layer1_0/conv9/kernel"):
        torch_names.to_torch({"params": {"layer1_0": {"conv9": {"kernel": np.zeros(1)}}}})


def test_merge_accounts_for_every_tensor():
    initial = initial_variables(DeepLab(**TINY, restitution_heads=True), 0)
    state_dict = random_state_dict(np.float64, **TINY, variant="none")
    del state_dict["layer6.conv2d_list.3.bias"]
    loaded, unused = torch_names.from_torch(state_dict | {"fc.bias": np.zeros(7)})
    loaded["params"]["layer9_0"] = {"conv1": {"kernel": np.zeros((1, 1, 1, 1))}}
    merged, report = torch_names.merge(initial, loaded, unused)

    before, got, after = (flatten_dict(tree) for tree in (initial, loaded, merged))
    assert list(after) == list(before)
    for path, value in after.items():
        assert value is (got[path] if path in got else before[path])
    weights = {name for name in state_dict if not name.endswith("tracked")}
    assert set(report.matched) == weights
    gates = {name for name in published_shapes(**TINY) if name.startswith(("IN", "style"))}
    classifiers = {f"restitution{k}/{leaf}" for k in (1, 2, 3) for leaf in ("kernel", "bias")}
    assert set(report.missing) == gates | classifiers | {"layer6.conv2d_list.3.bias"}
    assert report.unused == ("layer9.0.conv1.weight", "fc.bias")

    rows = {tuple(line.rsplit(maxsplit=3)) for line in str(report).splitlines()}
    assert rows == {
        ("tensors", "matched", "missing", "unused"),
        ("stem", "5", "0", "0"),
        ("layer1", "20", "0", "0"),
        ("layer2", "35", "0", "0"),
        ("layer3", "20", "0", "0"),
        ("layer4", "20", "0", "0"),
        ("snr", "0", "18", "0"),
        ("layer5 (auxiliary head)", "8", "0", "0"),
        ("layer6 (main head)", "7", "1", "0"),
        ("restitution classifiers", "0", "6", "0"),
        ("other", "0", "0", "2"),
        ("all", "115", "25", "2"),
    }


def test_an_auxiliary_head_that_does_not_fit_is_no_single_head():
    state_dict = random_state_dict(**TINY)
    state_dict["layer5.conv2d_list.0.weight"] = np.zeros((5, 128, 3, 3))
    loaded, unused = torch_names.from_torch(state_dict)
    assert unused == []
    with pytest.raises(UserError, match=r"layer5\.conv2d_list\.0\.weight has \(5, 128, 3, 3\)"):
        torch_names.merge(initial_variables(DeepLab(**TINY), 0), loaded)


def test_merge_names_tensors_that_do_not_fit():
    initial = initial_variables(DeepLab(**TINY), 0)
    loaded, _ = torch_names.from_torch(random_state_dict(**{**TINY, "num_classes": 7}))
    with pytest.raises(UserError, match="16 tensors do not fit") as error:
        torch_names.merge(initial, loaded)
    assert "layer5.conv2d_list.0.weight has (7, 64, 3, 3), expected (5, 64, 3, 3)" in str(
        error.value)
