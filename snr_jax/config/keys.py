"""Every key of a configuration: its value, what else it may be, and one sentence about it.

The values are those of GTA5 → Cityscapes, generalisation, as published. `make docs` writes the
table into docs/configuration.md.
"""

from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from snr_jax.config.legal import (
    DOMAIN,
    SWITCH,
    Legal,
    any_number_of,
    number,
    one_of,
    several,
    text,
    whole,
)
from snr_jax.core.colors import JITTERS
from snr_jax.core.errors import UserError, guess
from snr_jax.core.losses import TARGET_LOSSES
from snr_jax.core.mixing import MASKS
from snr_jax.core.models.create import ATROUS, BACKBONES, DTYPES
from snr_jax.core.models.deeplab import NORM_RESTITUTIONS
from snr_jax.core.optim import KINDS
from snr_jax.core.self_training import STATISTICS, TEACHER_MODES, WEIGHTS


class Key(NamedTuple):
    default: Any
    legal: Legal
    sentence: str


SIDES = several(2, whole(33, 8192))
STEPS = whole(1, 1_000_000_000)
WEIGHT = number(0, 1000)
SHARE = number(0, 1)

SECTIONS = {
    "The experiment": {
        "recipe": Key(
            "paper", text(empty=False),
            "The recipe of the configuration, chosen as --config FILE.py:release; the other keys "
            "are what counts."),
        "seed": Key(
            0, whole(0, 1_000_000_000),
            "Seed of the initial values, the order of the images and their augmentation."),
        "num_classes": Key(
            19, whole(2, 254),
            "Classes of the network: 19, 16 or 13 for the benchmarks, or those of the source "
            "domain itself, as CamVid's 11 or an own file's."),
        "init_from": Key(
            "", text(empty=True),
            "A run, a checkpoint or a weights folder, whose weights training starts from; empty: "
            "random values."),
        "reset_heads": Key(
            False, SWITCH,
            "The layers with an output for each class keep random values, whatever `init_from` "
            "holds: to go on with other classes than those of its training."),
    },
    "The network": {
        "model.backbone": Key(
            "resnet101", one_of(*BACKBONES),
            "What makes features of an image: a ResNet with the heads of DeepLab-v2, or a DINOv2 "
            "transformer with a light head, ViT-S/14, B/14 or L/14 (docs/backbones.md)."),
        "model.norm_restitution": Key(
            "snr", one_of(*NORM_RESTITUTIONS),
            "What follows each of a ResNet's first three layers, or the blocks of model.snr_after: "
            "SNR, its instance norm alone (in), or nothing."),
        "model.stage_sizes": Key(
            (3, 4, 23, 3), several(4, whole(1, 100)),
            "Bottleneck blocks of a ResNet's four layers; the default is ResNet-101."),
        "model.width": Key(
            64, whole(4, 1024),
            "Channels of a ResNet's stem, which the other widths are multiples of."),
        "model.vit_size": Key(
            (0, 0, 0), several(3, whole(1, 4096), also=(0, 0, 0)),
            "Channels, blocks and heads of a transformer of one's own size, in place of what "
            "model.backbone names."),
        "model.registers": Key(
            0, whole(0, 64), "Tokens of a transformer without a place; 4 in the published models "
            "with registers."),
        "model.snr_after": Key(
            (), any_number_of(whole(0, 999)),
            "Blocks of a transformer, from 0, after which model.norm_restitution follows."),
        "model.head_branches": Key(
            2, one_of(2, 4),
            "Dilated convolutions that a head sums: 2 as published, 4 as in DeepLab-v2."),
        "model.stride_in": Key(
            "conv1", one_of("conv1", "conv2"),
            "The convolution of a bottleneck that has the stride; conv2 for torchvision's "
            "weights."),
        "model.exposure": Key(
            False, SWITCH,
            "Scale each image to one mean brightness before the network sees it: for photographs "
            "in other light (docs/photos.md)."),
        "model.dtype": Key(
            "auto", one_of("auto", *DTYPES),
            "Precision of the computation; auto: float32 on a CPU, bfloat16 elsewhere."),
        "model.atrous": Key(
            "auto", one_of("auto", *ATROUS),
            "Which of three equal forms dilated convolutions have; auto: native on a CPU, "
            "weight_gradient elsewhere."),
        "model.remat": Key(
            False, SWITCH,
            "Compute the blocks once more in the backward pass: less memory, a third slower."),
    },
    "The images": {
        "data.root": Key("datasets", text(empty=False), "The folder of the data sets' folders."),
        "data.prepared": Key(
            "", text(empty=True),
            "A folder of scripts/prepare_data.py to train from; empty: from the data sets' files."),
        "data.scale_range": Key(
            (1.0, 1.0), several(2, number(0.1, 10), rising=True),
            "Random scale of a training image, times its size."),
        "data.crop": Key(
            (0, 0), several(2, whole(33, 8192), also=(0, 0)),
            "Height and width of a random crop of each training image."),
        "data.crop_class_share": Key(
            1.0, SHARE,
            "Largest share of a class in a crop of the source's images, which is drawn again up to "
            "10 times; 0.75 in MIC and VFM-UDA, 1: any."),
        "data.mirror": Key(True, SWITCH, "Mirror half of the training images."),
        "data.blur": Key(True, SWITCH, "Blur half of the training images, by less than a pixel."),
        "data.jitter": Key(
            "none", one_of("none", *JITTERS, "custom"),
            "How the colours of the source's training images change: a published setting (docs/"
            "data.md), or that of the next two keys."),
        "data.jitter_strengths": Key(
            (0.0, 0.0, 0.0, 0.0), several(4, SHARE),
            "For custom: strengths s of brightness, contrast and saturation, each a factor from "
            "1 - s to 1 + s, and of hue, in turns of its circle."),
        "data.jitter_probability": Key(
            0.5, SHARE, "For custom: the share of the source's images whose colours change."),
        "data.strong_blur": Key(
            False, SWITCH,
            "Blur half of the source's training images by a Gaussian of up to 1.15 pixels."),
    },
    "The source": {
        "source.domain": Key("gta5", DOMAIN, "The domain whose labels are trained on."),
        "source.dir": Key("GTA5", text(empty=True), "Its folder, below data.root."),
        "source.train_split": Key(
            "train", text(empty=False), "Its split that is trained on, as train (docs/data.md)."),
        "source.val_split": Key(
            "val", text(empty=False),
            "Its split that validations score; chooses the checkpoint best_source."),
        "source.rare_class_temperature": Key(
            0.0, number(0, 100),
            "How evenly classes are drawn, and with each an image that holds it: 0.01 in DAFormer, "
            "more is more even; 0: images are drawn equally often."),
        "source.rare_class_pixels": Key(
            3_000, whole(1), "Pixels from which on a label counts as holding a class."),
        "source.size": Key(
            (720, 1280), SIDES, "Height and width at which the network sees its images."),
    },
    "The target": {
        "target.domain": Key(
            "cityscapes", DOMAIN, "The domain whose labels are read for scores alone."),
        "target.dir": Key("Cityscapes", text(empty=True), "Its folder, below data.root."),
        "target.train_split": Key(
            "train", text(empty=False), "Its split that is adapted to, without labels."),
        "target.val_split": Key(
            "val", text(empty=True),
            "Its split that validations score; chooses the checkpoint oracle_target. Empty: no "
            "labels."),
        "target.size": Key(
            (512, 1024), SIDES, "Height and width at which the network sees its images."),
    },
    "The batch": {
        "batch_size": Key(
            1, whole(1, 4096), "Images of each domain in a step, over all devices."),
        "accumulate_steps": Key(
            1, whole(1, 4096),
            "Parts of a batch that are computed one after another: less memory, one update."),
        "sync_batch_norm": Key(
            True, SWITCH, "Take batch norm's statistics over all devices; False: over each alone."),
        "freeze_bn": Key(
            False, SWITCH,
            "Train the whole network in evaluation mode: its running statistics do not move."),
    },
    "The optimiser": {
        "optimizer.kind": Key(
            "sgd", one_of(*KINDS), "SGD with momentum, as published for ResNet-101, or AdamW."),
        "optimizer.base_rate": Key(
            2.5e-4, number(0, 10, without=0),
            "Learning rate at step 0, which the rates below multiply."),
        "optimizer.rate_by_batch": Key(
            False, SWITCH, "Multiply base_rate by the square root of batch_size."),
        "optimizer.schedule_steps": Key(
            200_000, STEPS, "Steps in which the rate falls to 0, by a polynomial."),
        "optimizer.schedule_power": Key(
            0.9, number(0, 10), "Power of the polynomial; 1: the rate falls evenly."),
        "optimizer.warmup_steps": Key(
            0, whole(0, 1_000_000_000),
            "First steps of the schedule, in which the rate rises from a thousandth of base_rate "
            "to all of it; 1,500 in VFM-UDA."),
        "optimizer.momentum": Key(
            0.9, number(0, 1, without=1), "For sgd: share of the velocity that a step keeps."),
        "optimizer.betas": Key(
            (0.9, 0.999), several(2, number(0, 1, without=1)),
            "For adamw: shares that a step keeps of the means of the gradient and of its square."),
        "optimizer.weight_decay": Key(
            5e-4, SHARE,
            "Share of each parameter that is added to its gradient; for adamw, 0.01 as published, "
            "to its change."),
        "optimizer.backbone_rate": Key(
            1.0, WEIGHT,
            "Learning rate of the backbone, times base_rate; 0: it is not trained, the heads and "
            "SNR alone are."),
        "optimizer.head_rate": Key(
            10.0, WEIGHT, "Learning rate of the heads, times base_rate."),
        "optimizer.snr_rate": Key(
            1.0, WEIGHT, "Learning rate of SNR and its classifiers, times base_rate."),
        "optimizer.train_snr": Key(
            True, SWITCH, "Train SNR; False: it stays at its initial values, as in the release."),
        "optimizer.repeated_updates": Key(
            True, SWITCH,
            "For sgd: update parts of the backbone 3 or 4 times in a step, as the release does."),
    },
    "The losses": {
        "loss.restitution_weight": Key(
            0.01, WEIGHT, "Weight of the restitution loss of each SNR block."),
        "loss.lambda_seg": Key(
            0.0, WEIGHT,
            "Weight of the auxiliary head and of its guidance on the target; published 0.1."),
        "loss.target": Key(
            "", one_of("", *TARGET_LOSSES, "classmix"),
            "The loss on the target; empty: none, training sees the source alone."),
        "loss.lambda_target": Key(0.1, WEIGHT, "Weight of the loss on the target."),
        "loss.threshold": Key(
            0.95, SHARE,
            "Probability above which a prediction is sure, for hard and for the guidance."),
        "loss.iw_ratio": Key(
            0.2, SHARE,
            "How strongly iw_maxsquare and iw_entropy favour the rare classes of an image."),
    },
    "Class mixing, for loss.target=classmix alone": {
        "mix.teacher_momentum": Key(
            0.99, SHARE,
            "Share of itself that the teacher keeps in a step, at most; 0.999 in MIC and VFM-UDA."),
        "mix.teacher_count": Key(
            1, whole(1, 1_000_000_000),
            "What the first step counts as, n in 1 - 1/n, which the teacher keeps until that is "
            "the most; 2 in MIC and VFM-UDA."),
        "mix.teacher_mode": Key(
            "train", one_of(*TEACHER_MODES),
            "The teacher's batch norm: by the target batch's statistics (train) or its running "
            "ones (eval)."),
        "mix.teacher_flip": Key(
            False, SWITCH, "Label by the teacher's mean for an image and its mirror."),
        "mix.threshold": Key(0.968, SHARE, "Probability above which a pseudo label is sure."),
        "mix.weight": Key(
            "share", one_of(*WEIGHTS),
            "What a pseudo label counts: the share of sure pixels in the batch (share), or 1 where "
            "it is sure and 0 elsewhere (pixel)."),
        "mix.class_share": Key(
            0.5, SHARE, "Share of the classes of a source label that are pasted."),
        "mix.rows_left_out": Key(
            (0, 0), several(2, whole(0, 8192)),
            "Rows at the top and at the bottom of the target, as it is cropped, that get no pseudo "
            "label."),
        "mix.rim_left_out": Key(
            (0.0, 0.0, 0.0, 0.0), several(4, SHARE),
            "Rim of the whole target image that gets no pseudo label: shares of its height at the "
            "top and bottom, of its width at the left and right; (0.03,0.25,0.03,0.03) in "
            "VFM-UDA."),
        "mix.statistics": Key(
            "own", one_of(*STATISTICS),
            "Whose running statistics the student is left with: its own or the teacher's."),
        "mix.jitter": Key(True, SWITCH, "Change the colours of the mixed image."),
        "mix.jitter_strength": Key(
            0.25, SHARE,
            "How far they change: brightness, contrast and saturation by a factor from 1 - s to 1 "
            "+ s, hue in turns of its circle; 0.2 in MIC and VFM-UDA."),
        "mix.blur": Key(True, SWITCH, "Blur the mixed image."),
        "mix.masked_weight": Key(
            0.0, WEIGHT,
            "Weight of masked consistency: pseudo labels for target images of which blocks are "
            "hidden; 1 in MIC, 0: none."),
        "mix.mask": Key(
            "blocks", one_of(*MASKS),
            "What is hidden: blocks of pixels, or tokens of a transformer."),
        "mix.mask_block": Key(
            32, whole(1, 8192),
            "Sides of a hidden block in pixels; 32 in MIC at crops of 512, 64 at 1024."),
        "mix.mask_ratio": Key(0.7, SHARE, "Share of the blocks or tokens that are hidden."),
    },
    "The run": {
        "num_steps": Key(80_000, STEPS, "Steps, after which the run ends."),
        "log_every_steps": Key(50, whole(1), "Steps between lines of progress and metrics.jsonl."),
        "eval_every_steps": Key(
            5_000, whole(1), "Steps between validations; one more follows the last step."),
        "checkpoint_every_steps": Key(
            1_000, whole(1), "Steps between saved states: what a power cut can cost."),
        "keep_checkpoints": Key(2, whole(1), "Newest states to keep, besides final and best."),
    },
    "The evaluation": {
        "eval.batch_size": Key(1, whole(1, 4096), "Images scored at a time, over all devices."),
        "eval.flip": Key(False, SWITCH, "Average with the prediction of the mirrored image."),
        "eval.max_images": Key(
            500, whole(0), "Images of each domain that a validation scores, by id; 0: all."),
        "eval.num_pictures": Key(4, whole(0), "Predictions that a validation draws."),
    },
}  # fmt: skip
KEYS = {key: row for rows in SECTIONS.values() for key, row in rows.items()}

# The keys whose values are paths, or may be.
PATHS = ("init_from", "data.root", "data.prepared",
         *(f"{side}.{key}" for side in ("source", "target") for key in ("domain", "dir")))


def create() -> ConfigDict:
    """A configuration in which every key has its default."""
    defaults = {key: row.default for key, row in KEYS.items()}
    return ConfigDict(unflatten_dict(defaults, sep="."))


def values(config: ConfigDict) -> dict[str, Any]:
    """Key, as "model.width" → its value."""
    return flatten_dict(config.to_dict(), sep=".")


def check(config: ConfigDict) -> None:
    """Raises UserError for a key that is missing, unknown, or of a value that is not legal."""
    found = values(config)
    for key in sorted(KEYS.keys() ^ found.keys()):
        what = "lacks the key" if key in KEYS else "has a key that nothing reads:"
        raise UserError(f"the configuration {what} {key}. docs/configuration.md lists every key")
    for key, row in KEYS.items():
        if not row.legal.accepts(found[key]):
            raise UserError(refusal(key, found[key]))


def refusal(key: str, value: Any) -> str:
    """The message that the key cannot be of this value: what it may be, and the nearest name."""
    legal = KEYS[key].legal
    example = f", as '--config.{key}={legal.example}'" if legal.example else ""
    near = guess(value, legal.names)
    return f"{key} is {value!r}; expected {legal.words}{example}{near}"
