"""Every configuration and recipe: values, mistakes in them, and that their steps can be built."""

import importlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from snr_jax.config import arguments, checks, keys
from snr_jax.configs import camvid_dg, default
from snr_jax.core.errors import UserError
from snr_jax.core.parallel import create_parallel
from snr_jax.core.state import create_state, variable_shapes
from snr_jax.runs import experiment

FOLDER = Path(default.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
NAN = float("nan")
SWITCHES = {  # method: the recipes by name
    #           SNR trained, restitution loss, repeated updates, head branches
    "paper": (True, 0.01, True, 2),
    "release": (False, 0.0, True, 2),
    "standard": (True, 0.01, False, 4),
}


# method: what the variants are, and the classes and sizes of the benchmarks
VARIANTS = {
    "maxsquare": ("maxsquare", 0.0, 0.1),
    "iw_maxsquare": ("iw_maxsquare", 0.0, 0.1),
    "iw_maxsquare_multi": ("iw_maxsquare", 0.1, 0.09),
    "minent": ("entropy", 0.0, 0.1),
    "iw_entropy": ("iw_entropy", 0.0, 0.1),
    "hard": ("hard", 0.0, 0.1),
}
ADAPTATIONS = [name for name in NAMES if name.endswith("_uda")]
SMALL = ("toy", "camvid")  # for two cores
OF_VIT = ("gta2city_vfm", "toy_vfm")  # whose argument is a task, and not a recipe
# Numbers of a network of 19 classes, without what the restitution loss alone trains.
NUMBERS = {"resnet101": 44_779_080, "dinov2_b": 88_392_000}
NEEDED = {"city2crosscity_uda": "Rome"}  # the argument that a configuration cannot be without


def get_config(name, *words):
    words = (*words, NEEDED[name]) if name in NEEDED else words
    module = importlib.import_module(f"snr_jax.configs.{name}")
    return module.get_config(*filter(None, [",".join(words)]))


@pytest.mark.parametrize("recipe", SWITCHES)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_VIT])
def test_recipes(name, recipe):
    config = get_config(name, recipe)
    checks.check(config)
    assert config.recipe == recipe
    *switches, head_branches = SWITCHES[recipe]
    assert switches == [
        config.optimizer.train_snr, config.loss.restitution_weight,
        config.optimizer.repeated_updates,
    ]  # fmt: skip
    # The small maps are smaller than the outer dilations.
    assert config.model.head_branches == (2 if name.startswith(SMALL) else head_branches)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("recipe", SWITCHES)
@pytest.mark.parametrize("name", ADAPTATIONS)
def test_variants(name, recipe, variant):
    """Beside any recipe, in any order."""
    config = get_config(name, recipe, variant)
    checks.check(config)
    assert get_config(name, variant, recipe).to_dict() == config.to_dict()
    assert config.recipe == recipe and config.optimizer.train_snr == SWITCHES[recipe][0]
    loss = config.loss
    assert (loss.target, loss.lambda_seg, loss.lambda_target) == VARIANTS[variant]
    if not name.startswith(SMALL):  # their images are smaller
        large = variant == "iw_maxsquare_multi"
        assert config.target.size == ((640, 1280) if large else (512, 1024))
        assert config.num_steps == config.optimizer.schedule_steps == 29_760


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_one_word_is_enough(name):
    base = get_config(name)
    assert base.recipe == ("standard" if name.startswith(SMALL) else "paper")
    assert base.loss.target == "maxsquare"
    assert get_config(name, "hard").recipe == base.recipe
    assert get_config(name, "release").loss.target == "maxsquare"


@pytest.mark.parametrize("name", ["city_dg13", "city2crosscity_uda"])
@pytest.mark.parametrize("city", ["Rio", "rome", "TOKYO", "Taipei"])
def test_cities(name, city):
    module = importlib.import_module(f"snr_jax.configs.{name}")
    config = module.get_config(f"{city},release")
    checks.check(config)
    assert config.target.dir == f"NTHU/{city.capitalize()}" and config.recipe == "release"
    assert config.target.domain == "crosscity" and config.source.domain == "cityscapes"
    assert config.num_classes == 13
    assert module.get_config(f"release,{city}").to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "name, argument, words",
    [
        ("gta5_dg", "papers", "no recipe is called 'papers'; there are paper, release, standard"),
        ("gta5_dg", "minent", "no recipe is called 'minent'; there are paper, release, standard"),
        ("gta2city_uda", "minents", "no recipe or variant is called 'minents'; there are paper, "
         "release, standard; maxsquare, iw_maxsquare, iw_maxsquare_multi, minent, iw_ent"),
        ("gta2city_uda", "release,paper", "release and paper exclude each other"),
        ("gta2city_uda", "hard,release,minent", "choose one variant of maxsquare, iw_maxsq"),
        ("synthia2city_uda", "Rome", "no recipe or variant is called 'rome'"),
        ("city_dg13", "Paris", "'paris'; there are paper, release, standard; rio, rome, tokyo, t"),
        ("city2crosscity_uda", "Rome,Rio", "rome and rio exclude each other"),
        ("city2crosscity_uda", "release", "the city is missing; .*Rio, Rome, Tokyo, Taipei"),
        ("city2crosscity_uda", "", "the city is missing; .*Rio, Rome, Tokyo, Taipei"),
        ("toy_uda", "x", "no recipe or variant is called 'x'"),
        ("camvid_dg", "small",
         "no recipe or size or optimizer is called 'small'; there are .*standard; full; adamw"),
    ],
)
def test_words_that_do_not_exist(name, argument, words):
    with pytest.raises(ValueError, match=words):
        importlib.import_module(f"snr_jax.configs.{name}").get_config(argument)


def test_benchmarks():
    """The sets, classes and sizes of the method, beside those of GTA5 → Cityscapes."""
    base = get_config("gta5_dg")

    def changes(name):
        config = get_config(name)
        return {k: v for k, v in keys.values(config).items() if v != keys.values(base)[k]}

    synthia = {"num_classes": 16, "source.domain": "synthia", "source.dir": "RAND_CITYSCAPES",
               "source.size": (760, 1280)}
    crosscity = {"num_classes": 13, "source.domain": "cityscapes", "source.dir": "Cityscapes",
                 "source.size": (512, 1024), "target.domain": "crosscity",
                 "target.dir": "NTHU/Rome"}
    adapted = {"loss.target": "maxsquare", "num_steps": 29_760, "eval_every_steps": 2_976,
               "optimizer.schedule_steps": 29_760}
    assert changes("gta2city_uda") == adapted | {"init_from": "runs/gta5_dg"}
    assert changes("synthia_dg") == synthia
    assert changes("synthia2city_uda") == synthia | adapted | {"init_from": "runs/synthia_dg"}
    assert changes("city_dg13") == crosscity
    # The setting of DACS; source and target meet in crops of one size.
    assert changes("gta2city_classmix") == {
        "loss.target": "classmix", "loss.lambda_target": 1.0, "num_steps": 250_000,
        "optimizer.schedule_steps": 250_000, "batch_size": 2, "data.crop": (512, 512),
        "data.mirror": False, "data.blur": False,
    }
    assert changes("city2crosscity_uda") == crosscity | adapted | {"init_from": "runs/city_dg13"}


def test_camvid_from_day_to_dusk():
    for name in ("camvid_dg", "camvid_uda", "camvid_classmix"):
        small, full = get_config(name), get_config(name, "full")
        for config in (small, full):
            checks.check(config)
            assert config.num_classes == 11 and config.source.domain == config.target.domain
            splits = [config[side][f"{part}_split"] for side in ("source", "target")
                      for part in ("train", "val")]
            assert splits == ["day_train", "day_val", "dusk_train", "dusk_val"]
            assert config.source.size == config.target.size and config.batch_size == 4
            assert config.num_steps == config.optimizer.schedule_steps
        assert (small.model.width, small.source.size) == (16, (120, 160))
        assert (full.model.width, full.source.size) == (64, (360, 480))
        assert full.model.stage_sizes == (3, 4, 23, 3)
        adamw = keys.values(get_config(name, "adamw"))
        changed = {key for key, value in keys.values(small).items() if adamw[key] != value}
        assert changed == camvid_dg.ADAMW.keys()
        assert get_config(name, "full", "adamw").optimizer.base_rate == full.optimizer.base_rate
    assert get_config("camvid_uda", "full", "minent", "release").loss.target == "entropy"
    assert arguments.split_name(get_config("camvid_uda"), "source") == "camvid_source"
    assert arguments.split_name(get_config("camvid_uda"), "target") == "camvid_target"


def test_masked_consistency_is_class_mixing_with_masks():
    mixing, masked = (keys.values(get_config(name)) for name in ("toy_classmix", "toy_mic"))
    assert {key: value for key, value in masked.items() if value != mixing[key]} == {
        "mix.masked_weight": 1.0, "mix.mask_block": 16}


def test_the_published_setting_of_vfm_uda():
    """Every key that differs from the default, of the adaptation and of its source alone."""
    of_source = {
        "recipe": "vfm_uda", "model.backbone": "dinov2_b", "source.size": (1024, 1863),
        "target.size": (1024, 2048), "data.scale_range": (0.9, 1.1), "data.crop": (1024, 1024),
        "data.crop_class_share": 0.75, "data.blur": False, "data.jitter": "vfm_uda",
        "source.rare_class_temperature": 0.01, "batch_size": 8, "optimizer.kind": "adamw",
        "optimizer.base_rate": 5e-5, "optimizer.rate_by_batch": True,
        "optimizer.backbone_rate": 0.1, "optimizer.head_rate": 1.0,
        "optimizer.weight_decay": 0.01, "optimizer.repeated_updates": False,
        "optimizer.warmup_steps": 1_500, "optimizer.schedule_power": 1.0,
        "optimizer.schedule_steps": 40_000, "num_steps": 40_000,
    }
    of_target = {
        "loss.target": "classmix", "loss.lambda_target": 1.0, "mix.teacher_momentum": 0.999,
        "mix.teacher_count": 2, "mix.teacher_flip": True, "mix.jitter_strength": 0.2,
        "mix.rim_left_out": (0.03, 0.25, 0.03, 0.03), "mix.masked_weight": 1.0,
        "mix.mask": "tokens",
    }
    base = keys.values(get_config("default"))
    for task, wanted in (("source", of_source), ("adapt", of_source | of_target),
                         ("", of_source | of_target)):
        found = keys.values(get_config("gta2city_vfm", task))
        assert {key: v for key, v in found.items() if v != base[key]} == wanted
        for name in OF_VIT:
            checks.check(get_config(name, task))


def test_published_values():
    config = get_config("gta5_dg")
    assert config.recipe == "paper"
    optimizer = config.optimizer
    assert (optimizer.base_rate, optimizer.momentum, optimizer.weight_decay) == (2.5e-4, 0.9, 5e-4)
    assert (optimizer.head_rate, optimizer.schedule_steps) == (10, 200_000)
    assert (config.num_steps, config.eval_every_steps, config.batch_size) == (80_000, 5_000, 1)
    assert config.model.stage_sizes == (3, 4, 23, 3) and config.model.width == 64
    assert config.source.size == (720, 1280) and config.target.size == (512, 1024)
    assert config.data.scale_range == (1, 1) and config.data.crop == (0, 0)
    assert config.loss.target == "" and config.loss.lambda_seg == 0
    config = get_config("gta2city_uda")
    assert config.num_steps == config.optimizer.schedule_steps == 29_760
    assert (config.loss.target, config.loss.lambda_target) == ("maxsquare", 0.1)
    assert (config.loss.threshold, config.loss.iw_ratio) == (0.95, 0.2)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "default"])
def test_docstring_is_the_command(name):
    text = importlib.import_module(f"snr_jax.configs.{name}").__doc__
    argument = f":{NEEDED[name]}" if name in NEEDED else ""
    command = f"python -m snr_jax.main --config configs/{name}.py{argument} --workdir"
    assert command in " ".join(text.replace("\\\n", " ").split())
    if get_config(name).loss.target == "classmix":
        assert "--config.init_from=" in text
    elif get_config(name).loss.target:
        assert all(variant in text for variant in VARIANTS)
        assert "--config.init_from=" in text


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("loss.target", "maxsquares", '"", maxsquare, iw_maxsquare, entropy, iw_entropy, hard'),
        ("num_steps", 200_001, "--config.optimizer.schedule_steps"),
        ("batch_size", 0, "a whole number, 1 to 4096"),
        ("eval.batch_size", 0, "a whole number, 1 to 4096"),
        ("log_every_steps", 0, "at least 1"),
        ("keep_checkpoints", 0, "at least 1"),
        ("eval.max_images", -1, "at least 0"),
        ("seed", -1, "0 to 1000000000"),
        ("model.dtype", "float16", "one of auto, float32, bfloat16"),
        ("model.norm_restitution", "ibn", "none, in, snr"),
        ("model.head_branches", 3, "one of 2, 4"),
        ("model.atrous", "fft", "auto, native, space_to_batch"),
        ("model.width", 3, "4 to 1024"),
        ("model.stage_sizes", (3, 4, 23), "4 whole numbers, 1 to 100"),
        ("model.stage_sizes", (1, 1.5, 1, 1), "4 whole numbers"),
        ("model.stage_sizes", (1, True, 1, 1), "4 whole numbers"),
        ("source.size", (720,), "33 to 8192, as '--config.source.size=(33,33)'"),
        ("target.size", (16, 32), "2 whole numbers, 33 to 8192"),
        ("target.size", (33, 65, 33), "2 whole numbers"),
        ("data.crop", (64,), "33 to 8192, or (0, 0) for none"),
        ("data.crop", (8, 8), "2 whole numbers"),
        ("data.crop", (0, 65), "2 whole numbers"),
        ("data.scale_range", (0.0, 1.0), "0.1 to 10"),
        ("data.scale_range", (2.0, 0.5), "the smaller first"),
        ("data.scale_range", (0.5, NAN), "2 numbers"),
        ("data.crop_class_share", 1.5, "0 to 1"),
        ("data.root", "", "not empty"),
        ("data.jitter", "robustnett", "one of none, robustnet, daformer, vfm_uda, custom"),
        ("data.jitter_strengths", (0.5, 0.5, 0.5), "4 numbers, 0 to 1"),
        ("data.jitter_strengths", (0.5, 0.5, 0.5, 1.5), "4 numbers, 0 to 1"),
        ("data.jitter_probability", 1.5, "0 to 1"),
        ("source.domain", "gta6", "one of gta5, synthia, cityscapes"),
        ("optimizer.kind", "adam", "one of sgd, adamw. Did you mean 'adamw'?"),
        ("optimizer.schedule_power", -1.0, "0 to 10"),
        ("optimizer.warmup_steps", -1, "0 to 1000000000"),
        ("optimizer.betas", (0.9, 1.0), "2 numbers, 0 to 1, but not 1"),
        ("optimizer.betas", (0.9,), "2 numbers"),
        ("optimizer.backbone_rate", NAN, "0 to 1000"),
        ("optimizer.base_rate", NAN, "0 to 10, but not 0"),
        ("optimizer.base_rate", 0.0, "0 to 10, but not 0"),
        ("optimizer.momentum", 1.0, "0 to 1, but not 1"),
        ("optimizer.weight_decay", NAN, "0 to 1"),
        ("optimizer.weight_decay", -5e-4, "0 to 1"),
        ("optimizer.head_rate", float("inf"), "0 to 1000"),
        ("loss.lambda_target", -0.1, "0 to 1000"),
        ("loss.threshold", 1.5, "0 to 1"),
        ("loss.iw_ratio", -0.2, "0 to 1"),
        ("mix.teacher_momentum", 1.5, "0 to 1"),
        ("mix.teacher_count", 0, "1 to 1000000000"),
        ("mix.teacher_mode", "test", "one of train, eval"),
        ("mix.threshold", NAN, "0 to 1"),
        ("mix.weight", "image", "one of share, pixel"),
        ("mix.class_share", 2.0, "0 to 1"),
        ("mix.rows_left_out", (1, -1), "2 whole numbers, 0 to 8192"),
        ("mix.rim_left_out", (0.03, 0.25), "4 numbers, 0 to 1"),
        ("mix.jitter_strength", 2.0, "0 to 1"),
        ("mix.masked_weight", -1.0, "0 to 1000"),
        ("mix.mask_block", 0, "1 to 8192"),
        ("mix.mask_ratio", 1.5, "0 to 1"),
        ("mix.statistics", "target", "one of own, teacher"),
        ("source.rare_class_temperature", -1.0, "0 to 100"),
        ("source.rare_class_pixels", 0, "at least 1"),
    ],
)
def test_values_that_do_not_exist(key, value, words):
    config = get_config("gta5_dg")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        checks.check(config)
    assert str(error.value).startswith(f"{key} is {value!r}") or key == "num_steps"
    assert words in str(error.value)


def test_a_number_of_classes_that_nothing_has():
    config = get_config("gta5_dg")
    config.num_classes = 20
    checks.check(config)  # an own source may have so many
    with pytest.raises(UserError, match=r"^num_classes is 20.* 19, 16 or 13"):
        experiment.open_splits(config)


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"data.crop": (0, 0)}, r"\(720, 1280\) into target images of \(512, 1024\).*data.crop"),
        ({"loss.lambda_seg": 0.1}, r"lambda_seg is 0.1: .* Set --config.loss.lambda_seg=0"),
        ({"mix.rows_left_out": (256, 256)}, r"\(256, 256\); expected less than the 512 rows"),
        ({"mix.rim_left_out": (0.5, 0.5, 0.0, 0.0)}, "expected less than 1 of top and bottom"),
        ({"mix.rim_left_out": (0.0, 0.0, 0.3, 0.8)}, "less than 1 of .* and of left and right"),
        ({"mix.mask_block": 64}, r"^mix.mask_block is 64, and mix.masked_weight is 0.0, which does "
                                 r"not read it. Set --config.mix.masked_weight=1$"),
        ({"mix.mask_ratio": 0.5}, r"--config.mix.masked_weight=1$"),
        ({"mix.masked_weight": 1.0, "mix.mask_block": 513},
         r"mix.mask_block is 513; expected at most 512, the shorter .* 512x512.*mask_block=32$"),
        ({"mix.jitter": False, "mix.jitter_strength": 0.2}, r"--config.mix.jitter=True$"),
    ],
)
def test_mixes_that_cannot_be(overrides, words):
    config = get_config("gta2city_classmix")
    checks.check(config)
    config.update_from_flattened_dict(overrides)
    with pytest.raises(UserError, match=words):
        checks.check(config)
    config.loss.target = "maxsquare"
    checks.check(config)


@pytest.mark.parametrize("overrides, words, remedy", [
    ({"optimizer.kind": "adamw"}, r"^optimizer.repeated_updates is True, .* SGD's alone",
     {"optimizer.repeated_updates": False}),
    ({"optimizer.kind": "adamw", "optimizer.repeated_updates": False, "optimizer.momentum": 0.5},
     r"^optimizer.momentum is 0.5, and optimizer.kind is 'adamw', which does not read it",
     {"optimizer.kind": "sgd"}),
    ({"optimizer.betas": (0.9, 0.99)},
     r"^optimizer.betas is \(0.9, 0.99\), and optimizer.kind is 'sgd', which does not read it",
     {"optimizer.kind": "adamw", "optimizer.repeated_updates": False}),
    ({"optimizer.warmup_steps": 200_000}, r"warmup_steps is 200000; .* the 200000 steps of",
     {"optimizer.warmup_steps": 199_999}),
    ({"data.crop_class_share": 0.75}, "share is 0.75, and images are trained on as a whole",
     {"data.crop": (512, 512)}),
    ({"data.crop_class_share": 0.75}, "Set a crop, as", {"data.scale_range": (0.5, 1.0)}),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_remedy(overrides, words, remedy):
    config = get_config("gta5_dg")
    config.update_from_flattened_dict(overrides)
    with pytest.raises(UserError, match=words):
        checks.check(config)
    config.update_from_flattened_dict(remedy)
    checks.check(config)


@pytest.mark.parametrize("jitter", ["none", "robustnet", "daformer", "vfm_uda"])
@pytest.mark.parametrize("key, value", [
    ("data.jitter_strengths", (0.5, 0.5, 0.5, 0.0)), ("data.jitter_probability", 0.9),
])  # fmt: skip
def test_strengths_that_nothing_reads_are_refused(key, value, jitter):
    config = get_config("gta5_dg")
    config.update_from_flattened_dict({key: value, "data.jitter": jitter})
    with pytest.raises(UserError, match=rf"^{key} is .*'{jitter}'.* --config.data.jitter=custom$"):
        checks.check(config)
    config.data.jitter = "custom"
    checks.check(config)


def test_keys_that_do_not_exist():
    config = get_config("gta5_dg")
    with config.unlocked():
        config.loss.lamda_seg = 0.1
    with pytest.raises(UserError, match=r"a key that nothing reads: loss.lamda_seg"):
        checks.check(config)
    with config.unlocked():
        del config.loss["lamda_seg"], config.loss["lambda_seg"]
    with pytest.raises(UserError, match=r"lacks the key loss.lambda_seg"):
        checks.check(config)


def test_the_batch_divides_over_the_devices(monkeypatch):
    config = get_config("gta5_dg")
    config.batch_size = 3
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"^batch_size is 3; .*2 devices.*batch_size=2$"):
        checks.check_devices(config)
    config.batch_size = 4
    checks.check_devices(config)
    config.accumulate_steps = 4
    wanted = r"a multiple of 8 \(2 devices x accumulate_steps 4\). Set --config.batch_size=8$"
    with pytest.raises(UserError, match=wanted):
        checks.check_devices(config)


@pytest.mark.parametrize(
    "name, recipe",
    [("gta5_dg", "paper"), ("gta2city_uda", "release"), ("gta2city_classmix", "paper"),
     ("gta2city_vfm", "adapt")],
)
def test_full_size_step_can_be_built(name, recipe):
    """The network of the configuration at a small image, shapes alone."""
    config = get_config(name, recipe)
    parallel = create_parallel()
    model = experiment.create_model(config, parallel)
    optimizer, _ = experiment.create_optimizer(config)
    create = partial(create_state, tx=optimizer, with_teacher=arguments.has_teacher(config))
    state = jax.eval_shape(create, variable_shapes(model))
    exported = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
                if "restitution" not in jax.tree_util.keystr(path)]
    assert sum(leaf.size for leaf in exported) == NUMBERS[config.model.backbone]
    images = jax.ShapeDtypeStruct((1, 65, 129, 3), jnp.uint8)
    batch = {
        "source_image": images,
        "source_label": jax.ShapeDtypeStruct((1, 65, 129), jnp.uint8),
        "target_image": images if state.teacher else jax.ShapeDtypeStruct(
            (1, 33, 65, 3), jnp.uint8),
    }
    step = experiment.create_step(config, model, optimizer, parallel)
    new_state, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    losses = {"loss_source"}
    losses |= {"loss_restitution"} if arguments.restitution_weight(config) else set()
    losses |= {"loss_masked"} if config.mix.masked_weight else set()
    losses |= {"loss_target"} if config.loss.target else set()
    losses |= {"sure_share"} if state.teacher else set()
    assert metrics.keys() == losses
