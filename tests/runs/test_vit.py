"""A transformer through every command: trained, adapted, gone on with, scored, shown, exported."""

import json
import shutil

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from snr_jax.core.state import initial_variables
from snr_jax.runs import network
from snr_jax.workdir import checkpoints
from tests.commands import config_flags, once
from tests.runs.test_train import assert_same_state, losses_of, state_of

CONFIG = "configs/gta2city_vfm.py"
TINY_VIT = {
    "model.backbone": "dinov2_s", "model.vit_size": (16, 1, 2), "model.snr_after": (0,),
    "optimizer.warmup_steps": 2, "optimizer.backbone_rate": 0.5, "data.crop": (33, 49),
    "data.scale_range": (0.9, 1.1), "num_steps": 6, "eval_every_steps": 3,
    "checkpoint_every_steps": 2, "source.rare_class_temperature": 0.0,
}  # fmt: skip
NO_RESNET = ("model.stage_sizes", "model.width")
MIX = {"mix.threshold": 0.055}


@pytest.fixture
def flags(train_flags):
    """As `train_flags`, without the keys of a ResNet."""
    def make(config, workdir, overrides):
        marks = tuple(f"--config.{key}=" for key in NO_RESNET)
        return [flag for flag in train_flags(config, workdir, overrides)
                if not flag.startswith(marks)]
    return make


@pytest.fixture
def source(shared_runs, command, flags, tmp_path_factory):
    """The run on the source alone, without SNR."""
    overrides = {**TINY_VIT, "model.snr_after": ()}
    return once(shared_runs, "vit", command, flags, tmp_path_factory, f"{CONFIG}:source", overrides)


@pytest.fixture
def adapted(shared_runs, command, flags, tmp_path_factory, source):
    """The run of class mixing and masked tokens from it, with SNR after its block."""
    overrides = {**TINY_VIT, **MIX, "init_from": source.workdir}
    return once(shared_runs, "vfm", command, flags, tmp_path_factory, CONFIG, overrides)


def test_what_is_recorded_is_the_network(adapted, source):
    want = {"backbone": "dinov2", "num_classes": 19, "width": 16, "depth": 1, "heads": 2,
            "patch": 14, "grid": 37, "registers": 0, "snr_after": (0,), "norm_restitution": "snr"}
    assert checkpoints.find(adapted.workdir).meta["model"] == want
    plain = want | {"snr_after": (), "norm_restitution": "none"}
    assert checkpoints.find(source.workdir).meta["model"] == plain
    assert "new, at their initial values: encoder/snr_0/" in adapted.out
    assert "  masked " in adapted.out and "  restitution " in adapted.out


def test_every_part_learns_and_the_teacher_follows(adapted, source):
    """The masked tokens' own as well: hidden tokens reach the network, and the loss them."""
    before, _ = checkpoints.load_variables(source.workdir)
    after, _ = checkpoints.load_variables(adapted.workdir)
    teacher, _ = checkpoints.load_variables(adapted.workdir / "checkpoints/teacher")
    assert after["batch_stats"] == teacher["batch_stats"] == {}
    flat = flatten_dict(before["params"], sep="/")
    for path, value in flatten_dict(after["params"], sep="/").items():
        assert path not in flat or (value != flat[path]).any(), path
    moved = [np.abs(of["params"]["head"]["out"]["kernel"] - flat["head/out/kernel"]).max()
             for of in (teacher, after)]
    assert 0 < moved[0] < moved[1]


def test_without_masks_their_token_stays(source):
    """Neither the loss nor the decay of the weights reaches it; what is around it is trained."""
    model, variables, _ = network.load(source.workdir)
    encoder, initial = variables["params"]["encoder"], initial_variables(model, 0)["params"]
    np.testing.assert_array_equal(encoder["mask_token"], initial["encoder"]["mask_token"])
    assert (encoder["cls_token"] != initial["encoder"]["cls_token"]).all()


def test_the_backbone_can_be_left_alone(command, flags, source, tmp_path):
    """By its rate, and the heads are trained: its optimiser has no state either."""
    overrides = {**TINY_VIT, "model.snr_after": (), "init_from": source.workdir,
                 "optimizer.backbone_rate": 0.0, "num_steps": 2}
    result = command("main", *flags(f"{CONFIG}:source", tmp_path / "run", overrides))
    assert result.code == 0, result
    before, after = (flatten_dict(checkpoints.load_variables(path)[0]["params"], sep="/")
                     for path in (source.workdir, tmp_path / "run"))
    for path, value in after.items():
        assert (value == before[path]).all() == path.startswith("encoder/"), path
    moments = [key for key in state_of(tmp_path / "run", 2) if "mu" in key]
    assert moments and all("head" in key for key in moments)


def test_gone_on_with_it_is_as_without_interruption(command, flags, adapted, source, tmp_path):
    workdir = shutil.copytree(adapted.workdir, tmp_path / "cut")
    for name in ("final", "teacher", "best_source", "oracle_target", "latest/6"):
        shutil.rmtree(checkpoints.folder(workdir, name))
    result = command("main", *adapted.arguments_in(workdir))
    assert result.code == 0 and "going on from the checkpoint of step 4" in result.out, result
    assert_same_state(adapted.workdir, workdir, step=6)
    assert losses_of(workdir) == losses_of(adapted.workdir)


def test_scored_shown_and_exported(command, adapted, data_root, tmp_path):
    keys = config_flags({"data.root": data_root, "target.size": (33, 65), "source.size": (33, 65)})
    found = []
    for protocol in ("network", "full"):
        out = tmp_path / protocol
        result = command("evaluate", "--config", CONFIG, "--checkpoint", adapted.workdir, *keys,
                         "--protocol", protocol, "--out", out)
        assert result.code == 0, result
        found.append(json.loads((out / "evaluation.json").read_text()))
    scores = checkpoints.find(adapted.workdir).meta["scores"]["cityscapes"]["miou"]
    assert f"{100 * scores:.1f}" in json.dumps(found[0]) or str(scores) in json.dumps(found[0])
    images = data_root / "Cityscapes/leftImg8bit/val"
    result = command("predict", "--checkpoint", adapted.workdir, "--images", images, "--out",
                     tmp_path / "shown")
    assert result.code == 0 and len(list((tmp_path / "shown").rglob("*.png"))) >= 3, result
    result = command("export", "--checkpoint", adapted.workdir, "--out", tmp_path / "m.stablehlo")
    assert result.code == 0 and "labels are equal" in result.out, result
    about = json.loads((tmp_path / "m.json").read_text())
    assert about["preprocessing"] == ("inside the program: RGB / 255 minus mean 0.485, 0.456, "
                                      "0.406, over deviation 0.229, 0.224, 0.225")


def test_another_network_is_told_with_the_keys_that_take_it(
    refused, flags, source, generalised, tmp_path
):
    """Between kinds and sizes, with what to set."""
    def of(overrides, config=f"{CONFIG}:source"):
        return refused("main", *flags(config, tmp_path / "run", {**TINY_VIT, **overrides}))

    other = of({"init_from": source.workdir, "model.snr_after": (), "model.vit_size": (8, 1, 1)})
    assert "width 16 there, 8 here; heads 2 there, 1 here" in other
    assert "'--config.model.vit_size=(16,1,2)'" in other
    other = of({"init_from": generalised.workdir})
    assert "backbone resnet there, dinov2 here" in other
    assert "--config.model.backbone=resnet101" in other
    assert "'--config.model.stage_sizes=(1,1,1,1)' --config.model.width=4" in other


@pytest.mark.parametrize(("overrides", "words"), [
    ({"loss.lambda_seg": 0.1}, "has no auxiliary head"),
    ({"freeze_bn": True}, "has no batch norm"),
    ({"mix.teacher_mode": "eval"}, "has no batch norm"),
    ({"model.head_branches": 4}, "has no dilated convolutions"),
    ({"model.exposure": True}, "is no ResNet"),
    ({"optimizer.repeated_updates": True, "optimizer.kind": "sgd"},
     "--config.optimizer.repeated_updates=False"),
    ({"model.snr_after": (1,)}, "snr_after has 1; expected numbers of blocks, 0 to 0"),
    ({"model.norm_restitution": "none"}, "--config.model.norm_restitution=snr"),
    ({"model.vit_size": (18, 1, 4), "model.snr_after": ()}, "a multiple of 4 and of the 4 heads"),
    ({"model.backbone": "resnet101"}, "model.vit_size is (16, 1, 2), and model.backbone resnet101"),
    ({"mix.mask_block": 16}, "Set --config.mix.mask=blocks"),
])
def test_what_it_does_not_have_is_refused_by_name(refused, flags, overrides, words, tmp_path):
    error = refused("main", *flags(CONFIG, tmp_path / "run", {**TINY_VIT, **MIX, **overrides}))
    assert words in error, error
    assert not (tmp_path / "run").exists()


def test_a_loaded_network_reorders_its_classes(source, monkeypatch):
    """By the outputs of its head alone."""
    model, variables, meta = network.load(source.workdir)
    here = network.classes_of(meta)
    names = [c.name for c in here][::-1]
    turned = network.in_order(model, variables, {**meta, "class_names": names}, here, "x")
    before, after = (flatten_dict(v["params"], sep="/") for v in (variables, turned))
    for path, value in after.items():
        turned = before[path][..., ::-1] if path == "head/out/kernel" else before[path]
        np.testing.assert_array_equal(value, turned)
