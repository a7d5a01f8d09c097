"""GTA5 → Cityscapes, generalisation, as published, and what the other experiments choose from.

Every key, with its value and meaning, is a row of snr_jax/config/keys.py (docs/configuration.md).
The experiments override a few; `--config.KEY=VALUE` overrides any.
"""

from collections.abc import Collection

from ml_collections import ConfigDict

from snr_jax.config import keys
from snr_jax.core.recipes import RECIPES

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
    config = keys.create()
    config.recipe = recipe
    config.model.head_branches = switches["head_branches"]
    config.optimizer.train_snr = switches["train_snr"]
    config.optimizer.repeated_updates = switches["repeated_updates"]
    config.loss.restitution_weight = switches["restitution_weight"]
    return config
