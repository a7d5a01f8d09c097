"""Every key with its unit. The experiments override a few; `--config.KEY=VALUE` overrides any.

The values are those of GTA5 → Cityscapes, generalisation, as published.
"""

from collections.abc import Collection

from ml_collections import ConfigDict

RECIPES = {
    # What the paper describes, with the updates that its numbers were made with.
    "paper": {
        "train_snr": True, "restitution_weight": 0.01, "repeated_updates": True,
        "head_branches": 2,
    },
    # What the released code does: SNR stays at its initial values.
    "release": {
        "train_snr": False, "restitution_weight": 0.0, "repeated_updates": True,
        "head_branches": 2,
    },
    # The textbook method: one update per step, the four branches of DeepLab-v2.
    "standard": {
        "train_snr": True, "restitution_weight": 0.01, "repeated_updates": False,
        "head_branches": 4,
    },
}


# What the methods before SNR minimise on the target; of configurations that adapt.
VARIANTS = {
    "maxsquare": {"loss.target": "maxsquare"},
    "iw_maxsquare": {"loss.target": "iw_maxsquare"},
    # With the guidance of the auxiliary head, at the size and weight of its published numbers.
    "iw_maxsquare_multi": {
        "loss.target": "iw_maxsquare", "loss.lambda_seg": 0.1, "loss.lambda_target": 0.09,
        "target.size": (640, 1280),
    },
    "minent": {"loss.target": "entropy"},
    "iw_entropy": {"loss.target": "iw_entropy"},
    "hard": {"loss.target": "hard"},
}


def choose(argument: str, **kinds: Collection[str]) -> list[str]:
    """The name of each kind in "release,minent", in any order and case; "" where there is none.

    Raises ValueError, listing the right ones, for a name of no kind and for two of one kind.
    """
    words = [word.strip().lower() for word in argument.split(",") if word.strip()]
    known = "; ".join(", ".join(names) for names in kinds.values())
    for word in words:
        if not any(word in names for names in kinds.values()):
            raise ValueError(f"no {' or '.join(kinds)} is called {word!r}; there are {known}")
    found = {kind: [word for word in words if word in names] for kind, names in kinds.items()}
    for kind, several in found.items():
        if len(several) > 1:
            raise ValueError(
                f"{' and '.join(several)} exclude each other; choose one {kind} of "
                f"{', '.join(kinds[kind])}"
            )
    return ["".join(one) for one in found.values()]


def adapt(config: ConfigDict, variant: str) -> None:
    """Makes it an adaptation of a trained network: 29,760 steps, with the loss of the variant."""
    config.num_steps = 29_760  # 5 rounds of 2 epochs of 2,976, as published for Cityscapes
    config.optimizer.schedule_steps = 29_760
    config.eval_every_steps = 2_976
    config.update_from_flattened_dict(VARIANTS[variant or "maxsquare"])


def self_train(config: ConfigDict) -> None:
    """Makes it self-training with class mixing, in the setting of DACS (arXiv 2007.08702)."""
    config.loss.target = "classmix"
    config.loss.lambda_target = 1.0
    config.num_steps = 250_000
    config.optimizer.schedule_steps = 250_000
    config.batch_size = 2
    config.data.crop = (512, 512)
    config.data.mirror = False
    config.data.blur = False


def get_config(recipe: str = "paper") -> ConfigDict:
    """`--config configs/default.py:release` chooses the recipe: paper, release or standard."""
    recipe = choose(recipe, recipe=RECIPES)[0] or "paper"
    switches = RECIPES[recipe]
    config = ConfigDict()

    config.recipe = recipe  # recorded with the run; the switches below are what counts
    config.seed = 0  # of initial values, order, augmentation; 0 to 1000000000
    config.num_classes = 19  # 2 to 254: 19, 16, 13 of the protocols, or those of an own source
    config.init_from = ""  # a run, one of its checkpoints, or a converted one; "": random values

    config.model = ConfigDict()
    config.model.norm_restitution = "snr"  # none, in, snr; "in" is instance norm alone
    config.model.stage_sizes = (3, 4, 23, 3)  # bottlenecks per layer, 1 to 100; as ResNet-101
    config.model.width = 64  # channels of the stem; 4 to 1024
    config.model.head_branches = switches["head_branches"]  # 2, 4; published 2
    config.model.stride_in = "conv1"  # conv1, conv2; conv2 for weights that come from torchvision
    config.model.dtype = "auto"  # auto, float32, bfloat16; auto: float32 on a CPU alone
    config.model.atrous = "auto"  # auto, native, space_to_batch, weight_gradient; auto: by backend
    config.model.remat = False  # recompute blocks in the backward pass: less memory, a third slower

    config.data = ConfigDict()
    config.data.root = "datasets"  # holds the data sets' folders
    config.data.prepared = ""  # folder of scripts/prepare_data.py; "": training reads the files
    config.data.scale_range = (1.0, 1.0)  # random scale of the training size; 0.1 to 10
    config.data.crop = (0, 0)  # height, width of a crop; 33 to 8192, or (0, 0) for none
    config.data.mirror = True  # half of the training samples
    config.data.blur = True  # half of the training images, by less than a pixel

    config.source = ConfigDict()
    config.source.domain = "gta5"  # a row of data/domains.py or my_domain.yaml; the labelled side
    config.source.dir = "GTA5"  # below data.root
    config.source.train_split = "train"  # "train", "val", "test" or "all"
    config.source.val_split = "val"  # chooses best_source
    config.source.rare_class_temperature = 0.0  # 0: images equally often; DAFormer 0.01; 0 to 100
    config.source.rare_class_pixels = 3_000  # of a class in a label that counts; at least 1
    config.source.size = (720, 1280)  # height, width that the network sees; 33 to 8192

    config.target = ConfigDict()
    config.target.domain = "cityscapes"  # the side whose labels only evaluation reads
    config.target.dir = "Cityscapes"  # below data.root
    config.target.train_split = "train"  # read for adaptation, without its labels
    config.target.val_split = "val"  # scored; chooses oracle_target; "": no labels
    config.target.size = (512, 1024)  # height, width that the network sees; 33 to 8192

    config.batch_size = 1  # images per domain and step, over all devices; 1 to 4096
    config.accumulate_steps = 1  # parts of it, one after another: less memory; 1 to 4096
    config.sync_batch_norm = True  # over the devices; False: each its own statistics
    config.freeze_bn = False  # True: the whole network in evaluation mode, no statistics move

    config.optimizer = ConfigDict()
    config.optimizer.base_rate = 2.5e-4  # at step 0, of the backbone; 0 to 10, but not 0
    config.optimizer.schedule_steps = 200_000  # of the poly schedule, power 0.9; 1 to 1000000000
    config.optimizer.momentum = 0.9  # share of the velocity that is kept; 0 to 1, but not 1
    config.optimizer.weight_decay = 5e-4  # times the parameter, added to its gradient; 0 to 1
    config.optimizer.head_rate = 10.0  # times base_rate; 0 to 1000
    config.optimizer.snr_rate = 1.0  # times base_rate, for SNR and its classifiers; 0 to 1000
    config.optimizer.train_snr = switches["train_snr"]  # False: SNR stays as initialised
    config.optimizer.repeated_updates = switches["repeated_updates"]  # the release's 1, 3, 4 times

    config.loss = ConfigDict()
    config.loss.restitution_weight = switches["restitution_weight"]  # per SNR block; 0 to 1000
    config.loss.lambda_seg = 0.0  # auxiliary head and guidance ("multi"); 0 to 1000, published 0.1
    config.loss.target = ""  # "", maxsquare, iw_maxsquare, entropy, iw_entropy, hard, classmix
    config.loss.lambda_target = 0.1  # weight of the target loss; 0 to 1000
    config.loss.threshold = 0.95  # probability, of "hard" and of the guidance; 0 to 1
    config.loss.iw_ratio = 0.2  # of the image-wise weights; 0 to 1

    config.mix = ConfigDict()  # of loss.target "classmix" alone: self-training with class mixing
    config.mix.teacher_momentum = 0.99  # most that it keeps of itself in a step; 0 to 1
    config.mix.teacher_mode = "train"  # train, eval; train: by the target batch's own statistics
    config.mix.threshold = 0.968  # probability from which a pseudo label is sure; 0 to 1
    config.mix.weight = "share"  # share, pixel; of all pixels the sure share, or 1 where sure
    config.mix.class_share = 0.5  # of the classes of a source label that are pasted; 0 to 1
    config.mix.rows_left_out = (0, 0)  # of the target, at top and bottom, unlabelled; 0 to 8192
    config.mix.statistics = "own"  # own, teacher; whose running statistics the student is left with
    config.mix.jitter = True  # colours of the mixed image
    config.mix.blur = True  # the mixed image

    config.num_steps = 80_000  # steps; a run ends there; 1 to 1000000000
    config.log_every_steps = 50  # between lines of progress and of metrics.jsonl; at least 1
    config.eval_every_steps = 5_000  # between validations, one more at the end; at least 1
    config.checkpoint_every_steps = 1_000  # that an interruption can cost; at least 1
    config.keep_checkpoints = 2  # newest states, besides final and best; at least 1

    config.eval = ConfigDict()
    config.eval.batch_size = 1  # images, over all devices; 1 to 4096
    config.eval.flip = False  # average with the mirrored image
    config.eval.max_images = 500  # of each domain, by id; 0 means all; at least 0
    config.eval.num_pictures = 4  # predictions drawn at each validation; at least 0
    return config
