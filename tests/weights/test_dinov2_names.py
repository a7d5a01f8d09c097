"""DINOv2's weights under the names of three kinds of files, there and back."""

import re

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core.errors import UserError
from snr_jax.core.models.light_head import ViTSegmenter
from snr_jax.core.state import initial_variables
from snr_jax.weights import dinov2_names
from snr_jax.weights.conversion import describe
from snr_jax.weights.dinov2_conversion import convert

TINY = {"num_classes": 5, "width": 64, "depth": 2, "heads": 1, "patch": 14, "grid": 3,
        "registers": 4}


def network(seed=0, **changes):
    """Variables of which no two tensors are equal."""
    initial = flatten_dict(initial_variables(ViTSegmenter(**{**TINY, **changes}), 0)["params"])
    random = np.random.default_rng(seed)
    return {"params": {}, "batch_stats": {}} | dinov2_names.unflatten_dict({
        ("params", *path): random.normal(size=x.shape).astype(np.float32)
        for path, x in initial.items()})


VARIABLES, TEACHER = network(), network(1)
FILES = {
    "dinov2": dinov2_names.to_dinov2(VARIABLES),
    "transformers": dinov2_names.to_transformers(VARIABLES),
    "vfm_uda": dinov2_names.to_vfm_uda(VARIABLES, TEACHER),
    "segmenter": dinov2_names.to_segmenter(VARIABLES),
}


def read(state_dict, network="network", **options):
    """(variables, account, architecture) of a state dict, as a converter goes about it."""
    found = dinov2_names.read_names(state_dict, network)
    shape = dinov2_names.infer_architecture(found.tensors)
    model = ViTSegmenter(**{**shape, "num_classes": shape["num_classes"] or 7, **options})
    return *dinov2_names.fill(initial_variables(model, 3), found.tensors, found.unused), shape


def assert_same(ours, theirs):
    ours, theirs = (flatten_dict(tree["params"], sep="/") for tree in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path in theirs:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


@pytest.mark.parametrize("kind", FILES)
def test_there_and_back(kind):
    variables, account, shape = read(FILES[kind])
    whole = kind in ("vfm_uda", "segmenter")
    heads = {"num_classes": 5} if whole else {"num_classes": None}
    assert shape == TINY | heads
    if whole:
        assert_same(variables, VARIABLES)
    else:
        ours, theirs = variables["params"]["encoder"], VARIABLES["params"]["encoder"]
        assert_same({"params": {"encoder": ours}}, {"params": {"encoder": theirs}})
        assert len(account.missing) == 10
        assert account.by_group()["head"]["missing"] == list(account.missing)
    assert not account.by_group().get("other")
    tensors = flatten_dict(variables["params"])
    assert len(account.matched) + len(account.missing) == len(tensors)


def test_each_tensor_of_a_training_is_accounted_for():
    raw = FILES["vfm_uda"] | {"metrics.0.confmat": np.zeros(1)}
    student, account, _ = read(raw)
    teacher, _, _ = read(raw, "network_ema")
    assert_same(student, VARIABLES)
    assert_same(teacher, TEACHER)
    second_names = 1  # token_masking.mask_token is the mask token once more
    assert len(account.matched) + len(account.unused) + second_names == len(raw)
    assert sum(name.startswith("network_ema.") for name in account.unused) == len(raw) // 2
    assert "metrics.0.confmat" in account.by_group()["other"]["unused"]


def test_pytorch_loads_the_second_name_of_the_mask_token_last():
    raw = FILES["vfm_uda"] | {"network.token_masking.mask_token": np.full((1, 64), 9, np.float32)}
    assert (read(raw)[0]["params"]["encoder"]["mask_token"] == 9).all()


def test_layouts():
    """Worked out by hand: a place of each kernel that only the right order reaches."""
    own, encoder = FILES["segmenter"], VARIABLES["params"]["encoder"]
    head = VARIABLES["params"]["head"]
    patch = encoder["patch_embed"]["proj"]["kernel"]
    assert own["encoder.patch_embed.proj.weight"][7, 2, 3, 5] == patch[(3 * 14 + 5) * 3 + 2, 7]
    assert own["encoder.blocks.1.mlp.fc1.weight"][9, 4] == encoder["blocks_1"]["mlp"]["fc1"][
        "kernel"][4, 9]
    assert own["upscale.0.weight"][3, 4, 1, 0] == head["upscale_0"]["kernel"][3, 2 * 32 + 4]
    assert own["upscale.5.weight"][3, 4, 1, 0] == head["upscale_5"]["kernel"][1, 0, 4, 3]
    assert own["out.weight"][3, 4, 0, 0] == head["out"]["kernel"][0, 0, 4, 3]
    apart = FILES["transformers"]
    value = apart["encoder.layer.1.attention.attention.value.weight"]
    np.testing.assert_array_equal(value, own["encoder.blocks.1.attn.qkv.weight"][128:])
    assert apart["encoder.layer.0.layer_scale2.lambda1"] is not None


@pytest.mark.parametrize("prefix", ["", "dinov2.", "dinov2_with_registers.", "module."])
def test_names_of_transformers(prefix):
    """With what its classifiers put before them, and as version 5 calls them in memory."""
    raw = {prefix + name: value for name, value in FILES["transformers"].items()}
    raw |= {"classifier.weight": np.zeros((2, 128))}
    variables, account, _ = read(raw)
    np.testing.assert_array_equal(variables["params"]["encoder"]["norm"]["bias"],
                                  VARIABLES["params"]["encoder"]["norm"]["bias"])
    assert account.unused == ("classifier.weight",)
    renamed = {re.sub(r"attention\.attention\.(q|k|v)\w+", r"attention.\1_proj",
                      name).replace("attention.output.dense", "attention.o_proj"): value
               for name, value in raw.items()}
    assert "encoder.layer.0.attention.q_proj.bias" in {name.removeprefix(prefix)
                                                       for name in renamed}
    assert_same(read(renamed)[0], variables)


def test_snr_starts_from_initial_values_and_is_not_written():
    variables, account, _ = read(FILES["segmenter"], snr_after=(1,), restitution_heads=True)
    groups = account.by_group()
    assert len(groups["snr"]["missing"]) == 6
    assert len(groups["restitution classifiers"]["missing"]) == 2
    with pytest.raises(UserError, match=r"encoder/snr_1/.* has no name in the published network"):
        dinov2_names.to_dinov2(variables)
    del variables["params"]["encoder"]["snr_1"]
    assert dinov2_names.to_segmenter(variables).keys() == FILES["segmenter"].keys()


def without(name, kind="dinov2"):
    return {key: value for key, value in FILES[kind].items() if name not in key}


@pytest.mark.parametrize(("raw", "words"), [
    ({"conv1.weight": np.zeros((4, 3, 7, 7))}, "no patch embedding .* found conv1.weight"),
    (without("blocks.0."), r"it has the blocks \[1\]; expected 0, 1"),
    (without("blocks."), r"it has the blocks \[\]"),
    (FILES["dinov2"] | {"pos_embed": np.zeros((1, 12, 64))}, "12 positions; expected one and a"),
    (FILES["dinov2"] | {"blocks.0.mlp.w12.bias": np.zeros(3)}, "mlp.w12, as ViT-g/14's"),
    (FILES["dinov2"] | {"norm.bias": np.zeros(3)}, r"norm.bias has \(3,\), expected \(64,\)"),
    (FILES["dinov2"] | {"blocks.1.attn.qkv.weight": np.zeros((64, 192))},
     r"has \(64, 192\), expected \(192, 64\)"),
    (without("layer.1.attention.attention.key.weight", "transformers"),
     "without .*1.attn.k.weight; expected query, key and value"),
    ({f"network.{name}": x for name, x in FILES["segmenter"].items()}, "no tensor network_ema"),
    ({"patch_embed.proj.weight": np.zeros(3), "pos_embed": np.zeros(3)}, "expected four axes"),
])
def test_what_is_refused(raw, words):
    with pytest.raises(UserError, match=words):
        read(raw, "network_ema" if "network_ema" in words else "network")


def test_heads_stand_in_no_file():
    tensors = dinov2_names.to_segmenter(network(width=48))
    with pytest.raises(UserError, match=r"48 channels, no multiple of 64, .* give it"):
        dinov2_names.infer_architecture(tensors)
    assert dinov2_names.infer_architecture(tensors, 3)["heads"] == 3


def test_files_are_recognised():
    assert all(map(dinov2_names.recognises, FILES.values()))
    assert not dinov2_names.recognises({"conv1.weight": 0, "layer1.0.conv1.weight": 0})


def test_converting_a_backbone():
    """The head is new, so is a mask token that the file lacks, and SNR where asked for."""
    raw = without("embeddings.mask_token", "transformers")
    done = convert(raw, num_classes=19, snr_after=(1, 0), seed=3)
    assert done.model == TINY | {"num_classes": 19, "snr_after": (0, 1), "norm_restitution": "snr"}
    assert done.found["num_classes"] is None and done.heads == () and done.class_names == ()
    np.testing.assert_array_equal(done.variables["params"]["encoder"]["pos_embed"],
                                  VARIABLES["params"]["encoder"]["pos_embed"])
    initial = initial_variables(ViTSegmenter(**done.model), 3)["params"]
    for path in (("head", "out", "kernel"), ("encoder", "mask_token"),
                 ("encoder", "snr_1", "fc1", "kernel")):
        assert (flatten_dict(done.variables["params"])[path] == flatten_dict(initial)[path]).all()
    text = describe(done)
    assert "note: no head in the file" in text and "note: no mask token in the file" in text
    assert re.search(r"blocks +28 +0 +0", text), text


def test_converting_a_training():
    names = ("a", "b", "c", "d", "e")
    done = convert(FILES["vfm_uda"], network="network_ema", class_names=names)
    assert_same(done.variables, TEACHER)
    assert done.class_names == names and done.heads == ("upscale, out",)
    reset = convert(FILES["vfm_uda"], num_classes=19, reset_heads=True)
    assert reset.heads == () and reset.model["num_classes"] == 19
    assert {"upscale.0.weight", "out.weight"} <= set(reset.account.unused)
    for raw, options, words in (
        (FILES["vfm_uda"], {"num_classes": 19}, "heads have 5 classes, --num_classes asks for 19"),
        (without("upscale.6.bias", "segmenter"), {"class_names": names}, "upscale.6.bias"),
        (without("blocks.1.norm2.bias"), {}, "1 required tensors are missing: encoder.blocks.1"),
        (FILES["dinov2"] | {"norm.bias": np.full(64, np.nan)}, {}, "NaN or infinity in encoder.no"),
        (FILES["dinov2"], {"snr_after": (2,)}, "snr_after has 2; expected numbers of blocks"),
    ):
        with pytest.raises(UserError, match=words):
            convert(raw, **options)
