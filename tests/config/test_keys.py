"""Every key of the configuration: its range, and that it arrives where the table says."""

import inspect
import io
import tokenize
from functools import partial
from types import SimpleNamespace

import pytest

from configs import default, gta2city_uda
from snr_jax.config import arguments, keys
from snr_jax.config.keys import KEYS
from snr_jax.core import losses, mixing
from snr_jax.core.parallel import create_parallel
from snr_jax.data import splits
from snr_jax.runs import experiment

# Another legal value of every key that the table sends somewhere, on top of BASE.
BASE = {"loss.target": "iw_maxsquare", "data.crop": (65, 65), "data.scale_range": (0.5, 2.0)}
OTHER = {
    "seed": 1, "num_classes": 16, "init_from": "elsewhere",
    "model.norm_restitution": "in", "model.stage_sizes": (1, 2, 1, 1), "model.width": 8,
    "model.head_branches": 4, "model.stride_in": "conv2", "model.dtype": "bfloat16",
    "model.atrous": "native", "model.remat": True,
    "data.root": "elsewhere", "data.prepared": "elsewhere",
    "data.scale_range": (0.5, 1.0), "data.crop": (65, 129),
    "source.domain": "cityscapes", "source.dir": "elsewhere", "source.train_split": "all",
    "source.val_split": "test", "source.size": (65, 129),
    "target.domain": "gta5", "target.dir": "elsewhere", "target.train_split": "val",
    "target.val_split": "test", "target.size": (65, 129),
    "batch_size": 4, "accumulate_steps": 2, "sync_batch_norm": False, "freeze_bn": True,
    "optimizer.base_rate": 0.5, "optimizer.schedule_steps": 10**6, "optimizer.momentum": 0.5,
    "optimizer.weight_decay": 0.5, "optimizer.head_rate": 0.5, "optimizer.snr_rate": 0.5,
    "optimizer.train_snr": False, "optimizer.repeated_updates": False,
    "loss.restitution_weight": 0.0, "loss.lambda_seg": 0.5, "loss.target": "maxsquare",
    "loss.lambda_target": 0.5, "loss.threshold": 0.5, "loss.iw_ratio": 0.5,
    "data.mirror": False, "data.blur": False,
    "source.rare_class_temperature": 0.5, "source.rare_class_pixels": 5,
    "mix.teacher_momentum": 0.5, "mix.teacher_mode": "eval", "mix.threshold": 0.5,
    "mix.weight": "pixel", "mix.class_share": 0.25, "mix.rows_left_out": (3, 5),
    "mix.statistics": "teacher", "mix.jitter": False, "mix.blur": False,
    "eval.batch_size": 3, "eval.flip": True, "eval.max_images": 7,
}  # fmt: skip
# What train.py reads: the recipe for the record, the length and the cadence of the run.
READ_IN_TRAIN = {
    "recipe", "num_steps", "log_every_steps", "eval_every_steps", "checkpoint_every_steps",
    "keep_checkpoints", "eval.num_pictures",
}  # fmt: skip
PARTS = {
    "source_split": partial(arguments.split_arguments, role="source"),
    "target_split": partial(arguments.split_arguments, role="target"),
    "source_val_split": partial(arguments.split_arguments, role="source_val"),
    "target_val_split": partial(arguments.split_arguments, role="target_val"),
    "source_stream": partial(arguments.stream_arguments, role="source"),
    "target_stream": partial(arguments.stream_arguments, role="target"),
    "model": partial(arguments.model_arguments, axis_name="replica"),
    "initial": arguments.initial_arguments,
    "schedule": arguments.schedule_arguments,
    "groups": arguments.groups_arguments,
    "rare": arguments.rare_arguments,
    "sgd": arguments.sgd_arguments,
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
    assert {key for key, (_, arrives) in KEYS.items() if not arrives} == READ_IN_TRAIN
    assert OTHER.keys() | READ_IN_TRAIN == KEYS.keys()


@pytest.mark.parametrize("key", OTHER)
def test_arrives(key):
    """The key changes the named arguments of the named parts, and no other."""
    # The threshold is an argument of "hard" as well as of the guidance.
    base = {"loss.target": "hard"} if key == "loss.threshold" else {}
    base = {"loss.target": "classmix"} if key.startswith("mix.") else base
    before, after = arrived(base), arrived({**base, key: OTHER[key]})
    changed = {name for name in before.keys() | after.keys() if before[name] != after[name]}
    assert changed == set(KEYS[key].arrives)


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
    config.update_from_flattened_dict({**BASE, **OTHER, **more})
    return config


def test_create_optimizer_passes_its_arguments_on(monkeypatch):
    config = changed_config()
    for name in ("schedule", "groups", "sgd"):
        function = {"schedule": "poly_schedule", "groups": "param_groups"}.get(name, name)
        with monkeypatch.context() as patch:
            kept = recorder(patch, experiment.optim, function, ())
            if name != "sgd":
                recorder(patch, experiment.optim, "sgd")
            experiment.create_optimizer(config)
        assert kept == PARTS[name](config)


@pytest.mark.parametrize("axis_name", [None, "replica"])
def test_create_model_passes_its_arguments_on(axis_name, monkeypatch):
    config = changed_config(sync_batch_norm=True)
    kept = recorder(monkeypatch, experiment.network, "create_model")
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
    splits = {
        role: splits.Split(
            role, f"domain of {role}", "train", (33, 65), f"samples of {role}", f"labels of {role}"
        )
        for role in ("source", "target")
    }
    assert list(experiment.batches(config, splits, 7, "rare classes")) == [
        {"source_image": 1, "source_label": 2, "target_image": 1}
    ]
    for (places, named), role in zip(kept, splits, strict=True):
        assert places == (f"samples of {role}", f"labels of {role}")
        assert named == {
            **arguments.stream_arguments(config, role),
            "size": (33, 65), "prepared": None,
            "rare": "rare classes" if role == "source" else None,
            "start_step": 7, "shard_index": 0, "shard_count": 1,
        }


def test_open_splits_passes_its_arguments_on(monkeypatch):
    config, kept = changed_config(), {}

    def list_samples(domain, directory, split, *, classes, require_labels):
        kept[domain, directory, split] = require_labels
        assert classes == arguments.create_classes(config)
        return list(range(20)), SimpleNamespace(domain=domain), []

    asked = []

    def open_prepared(folder, domain, *_, size, classes, scale_range):
        asked.append((folder, domain.name, size, scale_range))

    monkeypatch.setattr(experiment.domains, "list_samples", list_samples)
    monkeypatch.setattr(experiment.prepared, "open_prepared", open_prepared)
    monkeypatch.setattr(experiment.prepared, "refuse", lambda *_: None)
    splits = experiment.open_splits(config, lambda line: None)
    assert list(splits) == ["source", "target", "source_val", "target_val"]
    for role, split in splits.items():
        wanted = arguments.split_arguments(config, role)
        found = split.domain, wanted["directory"], split.split
        assert found == (wanted["domain"], wanted["directory"], wanted["split"])
        assert kept[found] == wanted["require_labels"] and split.size == wanted["size"]
        assert len(split.samples) == (7 if "val" in role else 20)
    assert asked == [
        ("elsewhere", splits[role].domain, splits[role].size, (0.5, 1.0))
        for role in ("source", "target")
    ]


def test_arrives_unchanged():
    """What is passed on without a change is passed on as it is, not as another key."""
    values = {**keys.values(gta2city_uda.get_config()), **BASE, **OTHER}
    values |= {"loss.target": "iw_maxsquare", "loss.restitution_weight": 0.25,
               "model.norm_restitution": "snr", "source.domain": "gta5"}
    found = arrived(values)
    derived = {"seed", "init_from", "data.root", "source.dir", "target.dir", "sync_batch_norm",
               "loss.target", "loss.iw_ratio", "data.blur"}
    derived |= {key for key in OTHER if key.startswith("mix.")}
    for key in OTHER.keys() - derived:
        target = KEYS[key].arrives[-1] if key != "loss.threshold" else "step.guidance_threshold"
        if key in ("model.norm_restitution", "loss.lambda_seg"):
            target = KEYS[key].arrives[0]
        assert found[target] == values[key], key
    assert (found["initial.seed"], found["step.seed"]) == (1, 1)
    assert (found["source_stream.seed"], found["target_stream.seed"]) == (2, 3)
    assert found["initial.init_from"] == "elsewhere"
    assert found["source_split.directory"] == "elsewhere/elsewhere"
    assert found["step.target_loss"][1] == {"ratio": 0.5}
    assert found["groups.multi_level"] and found["model.restitution_heads"]
    assert found["model.bn_axis_name"] is None and arrived({})["model.bn_axis_name"] == "replica"


def test_arrives_unchanged_at_class_mixing():
    found = arrived(OTHER | {"loss.target": "classmix"})
    switches = {"mix.jitter", "mix.blur"}
    given = {key: value for key, value in OTHER.items() if key.startswith("mix.")}
    for key, value in given.items():
        assert key in switches or found[f"step.{key[4:]}"] == value
    assert found["step.lambda_target"] == OTHER["loss.lambda_target"]
    assert found["step.prepare"][1] == {"with_blur": False}
    for key, expected in (("mix.jitter", (False, True)), ("mix.blur", (True, False))):
        strengthen = arrived({"loss.target": "classmix", key: False})["step.strengthen"]
        assert strengthen[0] is mixing.strong_augment
        assert strengthen[1] == dict(zip(("with_jitter", "with_blur"), expected))


def test_generalisation_has_no_target_loss():
    step = arguments.step_arguments(default.get_config())
    assert step.keys() == {
        "prepare", "seed", "lambda_seg", "restitution_weight", "freeze_bn", "accumulate_steps",
    }  # fmt: skip


def test_only_the_target_of_training_may_lack_labels():
    found = arrived({})
    assert {part: found[f"{part}.require_labels"] for part in PARTS if "split" in part} == {
        "source_split": True, "target_split": False, "source_val_split": True,
        "target_val_split": True,
    }  # fmt: skip
    assert found["source_stream.with_labels"] and not found["target_stream.with_labels"]


def comments() -> dict[str, str]:
    """Key → the comment on its line in configs/default.py."""
    source = inspect.getsource(default.get_config)
    lines = source.splitlines()
    return {
        lines[token.start[0] - 1].split("=")[0].strip().removeprefix("config."): token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }


@pytest.mark.parametrize("key", [key for key, (legal, _) in KEYS.items() if legal.range])
def test_comment_tells_the_range(key):
    if not key.endswith(".domain"):  # a new domain is a new row of data/domains.py alone
        assert KEYS[key].legal.range in comments()[key]
