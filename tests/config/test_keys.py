"""Every key of the configuration: its row, its range, and that it arrives where it should."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from snr_jax.config import arguments, backbones, keys, listing
from snr_jax.config.keys import KEYS
from snr_jax.configs import default, gta2city_uda
from snr_jax.core import augment, labels, losses, mixing, optim
from snr_jax.core.augment import BGR_MINUS_MEAN, RGB_NORMALIZED
from snr_jax.core.colors import JITTERS, Jitter
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import create_model
from snr_jax.core.models.light_head import mask_size
from snr_jax.core.parallel import create_parallel
from snr_jax.data import splits
from snr_jax.runs import experiment

ROOT = Path(__file__).resolve().parents[2]
# Another legal value of every key that `arguments` sends somewhere, on top of BASE.
BASE = {"loss.target": "iw_maxsquare", "data.crop": (65, 65), "data.scale_range": (0.5, 2.0)}
OTHER = {
    "seed": 1, "num_classes": 16, "init_from": "elsewhere", "reset_heads": True,
    "model.norm_restitution": "in", "model.stage_sizes": (1, 2, 1, 1), "model.width": 8,
    "model.head_branches": 4, "model.stride_in": "conv2", "model.exposure": True,
    "model.dtype": "bfloat16", "model.atrous": "native", "model.remat": True,
    "data.root": "elsewhere", "data.prepared": "elsewhere",
    "data.scale_range": (0.5, 1.0), "data.crop": (65, 129),
    "source.domain": "cityscapes", "source.dir": "elsewhere", "source.train_split": "all",
    "source.val_split": "test", "source.size": (65, 129),
    "target.domain": "gta5", "target.dir": "elsewhere", "target.train_split": "val",
    "target.val_split": "test", "target.size": (65, 129),
    "batch_size": 4, "accumulate_steps": 2, "sync_batch_norm": False, "freeze_bn": True,
    "optimizer.kind": "adamw", "optimizer.base_rate": 0.5, "optimizer.rate_by_batch": True,
    "optimizer.schedule_steps": 10**6, "optimizer.schedule_power": 2.0,
    "optimizer.warmup_steps": 7, "optimizer.momentum": 0.5, "optimizer.betas": (0.5, 0.75),
    "optimizer.weight_decay": 0.5, "optimizer.backbone_rate": 0.5, "optimizer.head_rate": 0.5,
    "optimizer.snr_rate": 0.5,
    "optimizer.train_snr": False, "optimizer.repeated_updates": False,
    "loss.restitution_weight": 0.0, "loss.lambda_seg": 0.5, "loss.target": "maxsquare",
    "loss.lambda_target": 0.5, "loss.threshold": 0.5, "loss.iw_ratio": 0.5,
    "data.mirror": False, "data.blur": False, "data.jitter": "daformer", "data.strong_blur": True,
    "data.jitter_strengths": (0.1, 0.2, 0.3, 0.4), "data.jitter_probability": 0.75,
    "source.rare_class_temperature": 0.5, "source.rare_class_pixels": 5,
    "data.crop_class_share": 0.75,
    "mix.teacher_momentum": 0.5, "mix.teacher_count": 3, "mix.teacher_mode": "eval",
    "mix.teacher_flip": True, "mix.threshold": 0.5,
    "mix.weight": "pixel", "mix.class_share": 0.25, "mix.rows_left_out": (3, 5),
    "mix.rim_left_out": (0.125, 0.25, 0.375, 0.5),
    "mix.statistics": "teacher", "mix.jitter": False, "mix.jitter_strength": 0.125,
    "mix.blur": False, "mix.masked_weight": 0.5, "mix.mask_block": 9, "mix.mask_ratio": 0.25,
    "eval.batch_size": 3, "eval.flip": True, "eval.max_images": 7,
}  # fmt: skip
OF_VIT = {
    "model.backbone": "dinov2_b", "model.vit_size": (16, 2, 4), "model.registers": 4,
    "model.snr_after": (1, 0), "mix.mask": "tokens",
}
OTHER |= OF_VIT
OF_RESNET = {key: value for key, value in OTHER.items() if key not in OF_VIT}
# Key → PART.ARGUMENT of every argument of `arguments.PART_arguments` that it changes.
ARRIVES = {
    "seed": "initial.seed step.seed source_stream.seed target_stream.seed",
    "num_classes": "model.num_classes",
    "init_from": "initial.init_from",
    "reset_heads": "initial.reset_heads",
    "model.backbone":
        "model.backbone model.registers model.snr_after model.norm_restitution "
        "model.restitution_heads model.stage_sizes model.width model.head_branches model.stride_in "
        "model.exposure model.atrous model.bn_axis_name groups.repeated_updates "
        "groups.multi_level groups.head_branches groups.masked_tokens step.restitution_weight "
        "step.prepare_source step.prepare_target",
    "model.vit_size": "model.width model.depth model.heads",
    "model.registers": "model.registers",
    "model.snr_after":
        "model.snr_after model.norm_restitution model.restitution_heads step.restitution_weight",
    "model.norm_restitution":
        "model.norm_restitution model.restitution_heads "
        "step.restitution_weight",
    "model.stage_sizes": "model.stage_sizes",
    "model.width": "model.width",
    "model.head_branches": "model.head_branches groups.head_branches",
    "model.stride_in": "model.stride_in",
    "model.exposure": "model.exposure",
    "model.dtype": "model.dtype",
    "model.atrous": "model.atrous",
    "model.remat": "model.remat",
    "data.root": "domains.source_directory domains.target_directory",
    "data.prepared": "source_split.prepared_in target_split.prepared_in",
    "data.scale_range":
        "source_split.scale_range target_split.scale_range "
        "source_stream.scale_range target_stream.scale_range",
    "data.crop": "source_stream.crop target_stream.crop",
    "data.crop_class_share": "source_stream.crop_class_share",
    "data.mirror": "source_stream.mirror target_stream.mirror",
    "data.blur": "step.prepare_source step.prepare_target",
    "data.jitter": "step.prepare_source",
    "data.jitter_strengths": "step.prepare_source",
    "data.jitter_probability": "step.prepare_source",
    "data.strong_blur": "step.prepare_source",
    "source.domain": "domains.source_domain",
    "source.dir": "domains.source_directory",
    "source.train_split": "source_split.split",
    "source.val_split": "source_val_split.split",
    "source.rare_class_temperature": "rare.temperature",
    "source.rare_class_pixels": "rare.min_pixels",
    "source.size": "source_split.size source_val_split.size",
    "target.domain": "domains.target_domain",
    "target.dir": "domains.target_directory",
    "target.train_split": "target_split.split",
    "target.val_split": "target_val_split.split",
    "target.size": "target_split.size target_val_split.size",
    "batch_size": "source_stream.batch_size target_stream.batch_size",
    "accumulate_steps": "step.accumulate_steps",
    "sync_batch_norm": "model.bn_axis_name",
    "freeze_bn": "step.freeze_bn",
    "optimizer.kind": "optimizer.momentum optimizer.betas",
    "optimizer.base_rate": "schedule.base_rate",
    "optimizer.rate_by_batch": "schedule.base_rate",
    "optimizer.schedule_steps": "schedule.num_steps",
    "optimizer.schedule_power": "schedule.power",
    "optimizer.warmup_steps": "schedule.warmup_steps",
    "optimizer.momentum": "optimizer.momentum",
    "optimizer.betas": "optimizer.betas",
    "optimizer.weight_decay": "optimizer.weight_decay",
    "optimizer.backbone_rate": "groups.backbone_rate",
    "optimizer.head_rate": "groups.head_rate",
    "optimizer.snr_rate": "groups.snr_rate",
    "optimizer.train_snr": "groups.train_snr",
    "optimizer.repeated_updates": "groups.repeated_updates",
    "loss.restitution_weight": "model.restitution_heads step.restitution_weight",
    "loss.lambda_seg": "step.lambda_seg groups.multi_level",
    "loss.target": "step.target_loss",
    "loss.lambda_target": "step.lambda_target",
    "loss.threshold": "step.guidance_threshold step.target_loss",
    "loss.iw_ratio": "step.target_loss",
    "mix.teacher_momentum": "step.teacher_momentum",
    "mix.teacher_count": "step.teacher_count",
    "mix.teacher_mode": "step.teacher_mode",
    "mix.teacher_flip": "step.teacher_flip",
    "mix.threshold": "step.threshold",
    "mix.weight": "step.weight",
    "mix.class_share": "step.class_share",
    "mix.rows_left_out": "step.rows_left_out",
    "mix.rim_left_out": "target_stream.rim",
    "mix.statistics": "step.statistics",
    "mix.jitter": "step.strengthen",
    "mix.jitter_strength": "step.strengthen",
    "mix.blur": "step.strengthen",
    "mix.masked_weight": "step.masked_weight",
    "mix.mask": "step.mask groups.masked_tokens",
    "mix.mask_block": "step.mask",
    "mix.mask_ratio": "step.mask",
    "eval.batch_size": "evaluation.batch_size",
    "eval.flip": "evaluation.flip",
    "eval.max_images": "source_val_split.max_images target_val_split.max_images",
}
ARRIVES = {key: tuple(names.split()) for key, names in ARRIVES.items()}
# What train.py reads: the recipe for the record, the length and the cadence of the run.
READ_IN_TRAIN = {
    "recipe", "num_steps", "log_every_steps", "eval_every_steps", "checkpoint_every_steps",
    "keep_checkpoints", "eval.num_pictures",
}  # fmt: skip


def domains_of(config) -> dict:
    """SIDE_domain and SIDE_directory of every side."""
    return {
        f"{side}_{name}": getattr(domain, attribute)
        for side, domain in arguments.create_domains(config).items()
        for name, attribute in (("domain", "spec"), ("directory", "directory"))
    }


PARTS = {
    "source_split": partial(arguments.split_arguments, role="source"),
    "target_split": partial(arguments.split_arguments, role="target"),
    "source_val_split": partial(arguments.split_arguments, role="source_val"),
    "target_val_split": partial(arguments.split_arguments, role="target_val"),
    "source_stream": partial(arguments.stream_arguments, role="source"),
    "target_stream": partial(arguments.stream_arguments, role="target"),
    "domains": domains_of,
    "model": partial(arguments.model_arguments, axis_name="replica"),
    "initial": arguments.initial_arguments,
    "schedule": arguments.schedule_arguments,
    "groups": arguments.groups_arguments,
    "rare": arguments.rare_arguments,
    "optimizer": arguments.optimizer_arguments,
    "step": arguments.step_arguments,
    "evaluation": arguments.evaluation_arguments,
}


def arrived(overrides: dict) -> dict:
    """PART.ARGUMENT → value, of every part."""

    def plain(value):
        return (value.func, value.keywords) if isinstance(value, partial) else value

    config = gta2city_uda.get_config()
    config.update_from_flattened_dict({**BASE, **overrides})
    keys.check(config)
    return {
        f"{part}.{name}": plain(value)
        for part, make in PARTS.items()
        for name, value in make(config).items()
    }


def test_every_key_of_the_default_is_in_the_table():
    assert keys.values(default.get_config()).keys() == KEYS.keys()
    assert OTHER.keys() == ARRIVES.keys() == KEYS.keys() - READ_IN_TRAIN


@pytest.mark.parametrize("key", OTHER)
def test_arrives(key):
    """The key changes the named arguments of the named parts, and no other."""
    # The threshold is an argument of "hard" as well as of the guidance.
    base = {"loss.target": "hard"} if key == "loss.threshold" else {}
    base = {"loss.target": "classmix"} if key.startswith("mix.") else base
    if key in OF_VIT and key != "model.backbone":
        base |= {"model.backbone": "dinov2_s", "mix.masked_weight": 1.0}
    base = {"data.jitter": "custom"} if key.startswith("data.jitter_") else base
    base = {"optimizer.kind": "adamw"} if key == "optimizer.betas" else base
    base = {"batch_size": 4} if key == "optimizer.rate_by_batch" else base
    before, after = arrived(base), arrived({**base, key: OTHER[key]})
    changed = {name for name in before.keys() | after.keys()
               if before.get(name) != after.get(name)}
    assert changed == set(ARRIVES[key])


@pytest.mark.parametrize("name", ["iw_maxsquare", "iw_entropy"])
def test_the_ratio_reaches_both_losses_with_image_weights(name):
    function, options = arrived({"loss.target": name, "loss.iw_ratio": 0.5})["step.target_loss"]
    assert function is losses.TARGET_LOSSES[name] and options == {"ratio": 0.5}


def recorder(monkeypatch, module, name: str, result=None) -> dict:
    """Replaces a function by one that keeps its named arguments."""
    kept = {}

    def record(*_, **named):
        kept.update(named)
        return result

    monkeypatch.setattr(module, name, record)
    return kept


def changed_config(**more):
    config = gta2city_uda.get_config()
    config.update_from_flattened_dict({**BASE, **OF_RESNET, **more})
    return config


@pytest.mark.parametrize(("kind", "values", "groups"), [
    ("sgd", {}, "resnet"), ("adamw", {}, "resnet"), ("adamw", OF_VIT, "dinov2"),
])
def test_create_optimizer_passes_its_arguments_on(kind, values, groups, monkeypatch):
    config = changed_config(**{"optimizer.kind": kind} | values)
    kept = {name: recorder(monkeypatch, experiment.optim, function, ())
            for name, function in (("schedule", "poly_schedule"), ("optimizer", kind))}
    kept["groups"] = {}
    monkeypatch.setitem(optim.GROUPS, groups, lambda **named: kept["groups"].update(named))
    experiment.create_optimizer(config)
    assert kept == {name: PARTS[name](config) for name in kept}


def test_the_rate_grows_by_the_root_of_the_batch():
    changes = {"optimizer.rate_by_batch": True, "optimizer.base_rate": 5e-5, "batch_size": 16}
    assert arrived(changes)["schedule.base_rate"] == pytest.approx(2e-4)
    assert arrived(changes | {"optimizer.rate_by_batch": False})["schedule.base_rate"] == 5e-5


@pytest.mark.parametrize("axis_name", [None, "replica"])
def test_create_model_passes_its_arguments_on(axis_name, monkeypatch):
    config = changed_config(sync_batch_norm=True)
    kept = recorder(monkeypatch, experiment, "create_network")
    experiment.create_model(config, create_parallel()._replace(axis_name=axis_name))
    assert kept == arguments.model_arguments(config, axis_name)
    assert kept["bn_axis_name"] == axis_name


@pytest.mark.parametrize(
    "target, factory", [
        ("", "make_source_step"), ("hard", "make_adaptation_step"),
        ("classmix", "make_classmix_step"),
    ]
)
def test_create_step_passes_its_arguments_on(target, factory, monkeypatch):
    config = changed_config(**{"loss.target": target})
    kept = recorder(monkeypatch, experiment, factory, lambda state, batch: (state, {}))
    parallel = create_parallel()._replace(axis_name="replica")
    experiment.create_step(config, "model", "tx", parallel)
    places = {"model": "model", "tx": "tx", "axis_name": "replica"}
    wanted = {**arguments.step_arguments(config), **places}
    plain = [{k: (v.func, v.keywords) if isinstance(v, partial) else v for k, v in d.items()}
             for d in (kept, wanted)]
    assert plain[0] == plain[1]


def test_batches_pass_their_arguments_on(monkeypatch):
    config, kept = changed_config(), []
    batch = {"image": 1, "label": 2}
    monkeypatch.setattr(
        experiment.pipeline, "train_batches",
        lambda *places, **named: kept.append((places, named)) or iter([batch]),
    )
    roles = {
        role: splits.Split(
            role, f"domain of {role}", "train", (33, 65), f"samples of {role}", f"labels of {role}"
        )
        for role in ("source", "target")
    }
    assert list(experiment.batches(config, roles, 7, "rare classes")) == [
        {"source_image": 1, "source_label": 2, "target_image": 1}
    ]
    for (places, named), role in zip(kept, roles, strict=True):
        assert places == (f"samples of {role}", f"labels of {role}")
        assert named == {
            **arguments.stream_arguments(config, role),
            "size": (33, 65), "prepared": None,
            "rare": "rare classes" if role == "source" else None,
            "start_step": 7, "shard_index": 0, "shard_count": 1,
        }
    batch["extent"] = 3  # where a target may be smaller than its crop
    (found,) = experiment.batches(config, roles, 7)
    assert found.keys() == {"source_image", "source_label", "target_image", "target_extent"}
    assert found["target_extent"] == 3


def test_open_splits_passes_its_arguments_on(monkeypatch):
    config, kept = changed_config(), {}

    def list_samples(domain, split, *, classes, require_labels):
        kept[domain.spec, domain.directory, split] = require_labels
        assert classes == labels.classes(config.num_classes)
        return list(range(20)), SimpleNamespace(domain=domain, parts=()), []

    asked = []

    def open_prepared(folder, domain, *_, size, classes, scale_range, require_labels):
        asked.append((folder, domain.spec, size, scale_range, require_labels))

    monkeypatch.setattr(splits, "list_samples", list_samples)
    monkeypatch.setattr(splits.reading, "open_prepared", open_prepared)
    monkeypatch.setattr(splits.reading, "refuse", lambda *_: None)
    opened = experiment.open_splits(config)
    assert list(opened) == ["source", "target", "source_val", "target_val"]
    for role, split in opened.items():
        side = config[role.partition("_")[0]]
        wanted = arguments.split_arguments(config, role)
        found = split.domain.spec, split.domain.directory, split.split
        assert found == (side.domain, f"{config.data.root}/{side.dir}", wanted["split"])
        assert kept[found] == wanted["require_labels"] and split.size == wanted["size"]
        assert len(split.samples) == (7 if "val" in role else 20)
    assert asked == [
        ("elsewhere", opened[role].domain.spec, opened[role].size, (0.5, 1.0), needed)
        for role, needed in (("source", True), ("target", False))
    ]


def test_arrives_unchanged():
    """What is passed on without a change is passed on as it is, not as another key."""
    values = {**keys.values(gta2city_uda.get_config()), **BASE, **OF_RESNET}
    values |= {"loss.target": "iw_maxsquare", "loss.restitution_weight": 0.25,
               "model.norm_restitution": "snr", "source.domain": "gta5",
               "optimizer.rate_by_batch": False}
    found = arrived(values)
    derived = {"seed", "init_from", "data.root", "source.dir", "target.dir", "sync_batch_norm",
               "loss.target", "loss.iw_ratio", "data.blur", "data.strong_blur"}
    derived |= {"optimizer.kind", "optimizer.momentum", "optimizer.rate_by_batch"}
    derived |= {key for key in OF_RESNET if key.startswith(("mix.", "data.jitter"))}
    for key in OF_RESNET.keys() - derived:
        target = ARRIVES[key][-1] if key != "loss.threshold" else "step.guidance_threshold"
        if key in ("model.norm_restitution", "loss.lambda_seg"):
            target = ARRIVES[key][0]
        assert found[target] == values[key], key
    assert arrived(values | {"optimizer.kind": "sgd"})["optimizer.momentum"] == 0.5
    assert (found["initial.seed"], found["step.seed"]) == (1, 1)
    assert (found["source_stream.seed"], found["target_stream.seed"]) == (2, 3)
    assert found["initial.init_from"] == "elsewhere"
    assert found["domains.source_directory"] == "elsewhere/elsewhere"
    assert found["step.target_loss"][1] == {"ratio": 0.5}
    assert found["groups.multi_level"] and found["model.restitution_heads"]
    assert found["model.bn_axis_name"] is None and arrived({})["model.bn_axis_name"] == "replica"


def test_arrives_unchanged_at_class_mixing():
    found = arrived(OF_RESNET | {"loss.target": "classmix"})
    elsewhere = {"mix.jitter", "mix.jitter_strength", "mix.blur", "mix.mask_block",
                 "mix.mask_ratio", "mix.rim_left_out"}
    given = {key: value for key, value in OF_RESNET.items() if key.startswith("mix.")}
    for key, value in given.items():
        assert key in elsewhere or found[f"step.{key[4:]}"] == value
    assert found["step.mask"] == (mixing.mask_blocks, {"block": 9, "ratio": 0.25})
    assert found["target_stream.rim"] == OTHER["mix.rim_left_out"]
    assert found["source_stream.rim"] is None and found["target_stream.crop_class_share"] == 1
    assert found["step.lambda_target"] == OTHER["loss.lambda_target"]
    seen = {"preprocessing": BGR_MINUS_MEAN}
    assert found["step.prepare_target"][1] == {"with_blur": False} | seen
    assert found["step.prepare_source"][1] == {
        "with_blur": False, "jitter": JITTERS["daformer"], "strong_blur": True} | seen
    for key, expected in (("mix.jitter", (False, True)), ("mix.blur", (True, False))):
        strengthen = arrived({"loss.target": "classmix", key: False})["step.strengthen"]
        assert strengthen[0] is mixing.strong_augment
        switches = dict(zip(("with_jitter", "with_blur"), expected))
        assert strengthen[1] == switches | {"strength": 0.25} | seen
    assert found["step.strengthen"][1]["strength"] == 0.125


@pytest.mark.parametrize("target", ["", "hard", "classmix"])
def test_what_a_transformer_sees_and_is(target):
    """In every way of training, and in what the student and the teacher see of a mix."""
    found = arrived(OF_VIT | {
        "loss.target": target, "optimizer.backbone_rate": 0.5, "mix.masked_weight": 1.0,
        "mix.mask_ratio": 0.25})
    prepares = [value for name, value in found.items()
                if name in ("step.prepare_source", "step.prepare_target", "step.strengthen")]
    assert len(prepares) == {"": 1, "hard": 2, "classmix": 3}[target]
    assert {options["preprocessing"] for _, options in prepares} == {RGB_NORMALIZED}
    model = {name[6:]: value for name, value in found.items() if name.startswith("model.")}
    assert model == {
        "backbone": "dinov2_b", "width": 16, "depth": 2, "heads": 4, "registers": 4,
        "snr_after": (0, 1), "norm_restitution": "snr", "restitution_heads": True,
        "num_classes": 19, "dtype": "auto", "remat": False}
    groups = {name[7:]: value for name, value in found.items() if name.startswith("groups.")}
    assert groups == {"masked_tokens": target == "classmix", "train_snr": True,
                      "backbone_rate": 0.5, "head_rate": 10.0, "snr_rate": 1.0}
    if target == "classmix":
        assert found["step.mask"] == (mixing.mask_tokens, {"grid": mask_size, "ratio": 0.25})


def test_keys_of_a_checkpoint_are_those_of_its_network():
    """`model_keys` of what is recorded gives the same network again, of either kind."""
    for values in ({}, OF_RESNET, {"model.backbone": "dinov2_l"}, OF_VIT):
        config = gta2city_uda.get_config()
        config.update_from_flattened_dict({**BASE, **values})
        there = architecture(create_model(**arguments.model_arguments(config, None)))
        again = gta2city_uda.get_config()
        again.update_from_flattened_dict(backbones.model_keys(there))
        assert architecture(create_model(**arguments.model_arguments(again, None))) == there
        assert again.model.vit_size == values.get("model.vit_size", (0, 0, 0))


@pytest.mark.parametrize("target", ["", "hard", "classmix"])
def test_the_colors_of_the_source_are_off_or_those_asked_for(target):
    """In every way of training; the strengths and the probability are read for custom alone."""
    def jitter(**options):
        config = gta2city_uda.get_config()
        config.update_from_flattened_dict(
            {"loss.target": target} | {f"data.{key}": value for key, value in options.items()})
        prepare = arguments.step_arguments(config)["prepare_source"]
        assert prepare.func is augment.augment
        return prepare.keywords["jitter"], prepare.keywords["strong_blur"]

    strengths = OTHER["data.jitter_strengths"]
    assert jitter() == (None, False)
    assert jitter(jitter="robustnet", strong_blur=True) == (JITTERS["robustnet"], True)
    assert jitter(jitter="custom", jitter_strengths=strengths, jitter_probability=0.75) == (
        Jitter(*strengths, probability=0.75), False)
    assert jitter(jitter="none", jitter_strengths=strengths)[0] is None


def test_generalisation_has_no_target_loss():
    step = arguments.step_arguments(default.get_config())
    assert step.keys() == {
        "prepare_source", "seed", "lambda_seg", "restitution_weight", "freeze_bn",
        "accumulate_steps",
    }  # fmt: skip


def test_only_the_target_of_training_may_lack_labels():
    found = arrived({})
    assert {part: found[f"{part}.require_labels"] for part in PARTS if "split" in part} == {
        "source_split": True, "target_split": False, "source_val_split": True,
        "target_val_split": True,
    }  # fmt: skip
    assert found["source_stream.with_labels"] and not found["target_stream.with_labels"]


@pytest.mark.parametrize("key", KEYS)
def test_a_row_explains_its_key(key):
    """In a sentence, and the default is a value that the key may have."""
    default, legal, sentence = KEYS[key]
    assert legal.accepts(default)
    assert sentence[0].isupper() and sentence.endswith(".") and len(sentence) > 15
    assert not {"|", "\n"} & {*sentence, *legal.words}  # it is a row of a table


def test_the_defaults_are_those_of_the_default():
    """The page says so; four of them are switches of the recipe."""
    assert keys.values(default.get_config()) == {key: row.default for key, row in KEYS.items()}


def test_the_page_is_what_the_table_gives():
    """After a change of the table: make docs."""
    assert (ROOT / "docs/configuration.md").read_text() == listing.page()
    rows = [line for line in listing.page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(KEYS)


def test_help_config_lists_every_key(command):
    result = command("main", "--help_config")
    assert result.code == 0
    found = dict(re.findall(r"^  --config\.(\S+?)=(.*)$", result.out, re.MULTILINE))
    assert list(found) == list(KEYS)
    assert found["batch_size"] == "1" and found["init_from"] == '""'
    about = " ".join(result.out.split())
    for row in KEYS.values():
        assert row.sentence in about and row.legal.words[1:] in about


def test_help_config_has_the_values_of_the_experiment(command):
    result = command("main", "--help_config", "--config", "configs/gta2city_uda.py:hard",
                     "--config.target.size=(40,50)")
    assert "  --config.loss.target=hard\n" in result.out
    assert "  --config.target.size=(40,50)\n" in result.out


@pytest.mark.parametrize(
    "key, value, guess",
    [
        ("data.root", "", None), ("model.atrous", "", None), ("model.width", 3, None),
        ("model.head_branches", 3, None), ("model.dtype", "float23", "float32"),
        ("source.domain", "cityscape", "cityscapes"), ("loss.target", "MAXSQUARES", "maxsquare"),
    ],
)
def test_a_guess_only_where_a_name_is_near(key, value, guess):
    found = keys.refusal(key, value).partition("Did you mean ")[2]
    assert found == (f"{guess!r}?" if guess else "")
