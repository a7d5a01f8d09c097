"""The model card of a weights folder: what its config.json says, for people and for hubs.

Nothing is invented: what is not recorded is listed as not known.
"""

from collections.abc import Iterator, Mapping
from math import isfinite, nan
from typing import Any

import yaml

# Identifiers of licences that the hubs know; other words are told beside "other".
LICENCES = (
    "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "gpl-2.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "mpl-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "unlicense",
)
_UNKNOWN = "not recorded"
_NORMS = {"none": "without restitution", "in": "instance norm after its first three layers",
          "snr": "SNR (style normalisation and restitution) after its first three layers"}
# What the checkpoints of a run were chosen by.
_CHOSEN = {
    "final": "the last step of its training",
    "teacher": "the mean teacher at the last step of its training",
    "best_source": "the best on the source's validation images",
    "oracle_target": "the best on labelled images of the target, which adaptation does not have: "
                     "its scores there flatter it",
}


def card(name: str, config: Mapping, numbers: int) -> str:
    """README.md, in markdown after the front matter that hubs read.

    config: the content of config.json. numbers: how many parameters the network has.
    """
    parts = [
        f"# {name}",
        f"Semantic segmentation into {config['model']['num_classes']} classes by the JAX/Flax "
        "package `snr_jax`: a ResNet DeepLab-v2 "
        f"({_NORMS[config['model']['norm_restitution']]}).",
        _table(("", ""), [(key, text) for key, text in _facts(config, numbers).items()]),
        "Classes, in the order of their numbers: " + ", ".join(config["class_names"]) + ".",
        "## Scores\n\n" + _scores(config),
        "## Use\n\n" + _use(config),
    ]
    if unknown := list(_unknown(config)):
        parts.append("## Not known\n\n" + "\n".join(f"- {line}" for line in unknown))
    front = yaml.safe_dump(_front_matter(name, config), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(name: str, config: Mapping) -> dict:
    licence = config["licence"] or ""
    if licence.lower() in LICENCES:
        front: dict[str, Any] = {"license": licence.lower()}
    else:
        front = {"license": "other", "license_name": licence} if licence else {}
    front |= {
        "library_name": "snr_jax", "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "jax", "flax", "deeplab"],
    }
    if config["datasets"]:
        front["datasets"] = config["datasets"]
    if results := [_result(scores) for scores in _scored(config)]:
        front["metrics"] = ["mean_iou"]
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _result(scores: Mapping) -> dict:
    settings = scores["settings"]
    return {
        "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
        "dataset": {"type": settings["domain"], "name": settings["domain"],
                    "split": settings.get("split", _UNKNOWN)},
        "metrics": [{"type": "mean_iou", "name": f"mIoU ({_told(settings)})",
                     "value": round(scores["miou"], 4)}],
    }


def _scored(config: Mapping) -> list[Mapping]:
    """The scores that are numbers and say of what data they are."""
    return [scores for scores in config.get("scores", {}).values()
            if scores.get("settings", {}).get("domain") and isfinite(scores.get("miou", nan))]


def _told(settings: Mapping) -> str:
    size = "x".join(map(str, settings.get("size", []))) or "size not recorded"
    flip = {True: ", averaged with the mirrored image", False: ""}.get(settings.get("flip"), "")
    return (f"{settings.get('images', '?')} images seen at {size}, protocol "
            f"{settings.get('protocol', _UNKNOWN)}{flip}, {settings.get('dtype', '')}").rstrip(", ")


def _scores(config: Mapping) -> str:
    rows = [(f"{s['settings']['domain']} {s['settings'].get('split', '')}".rstrip(),
             f"{100 * s['miou']:.1f}", _told(s["settings"])) for s in _scored(config)]
    if not rows:
        return "None are recorded."
    return (_table(("data", "mIoU, %", "settings"), rows)
            + "\n\nOf each class, and further measures: `scores` in config.json.")


def _facts(config: Mapping, numbers: int) -> dict[str, str]:
    model, source = config["model"], config.get("source", {})
    seen = config["preprocessing"]
    mean = ", ".join(f"{value:.3f}" for value in seen["mean"])
    exposure = ", each image scaled to one mean brightness first" if seen["exposure"] else ""
    size = "{} x {}".format(*seen["size"]) if seen["size"] else f"size in training {_UNKNOWN}"
    facts = {
        "licence": config["licence"] or "not stated",
        "trained on": config["trained_on"] or _UNKNOWN,
        "network": f"blocks {', '.join(map(str, model['stage_sizes']))}, width {model['width']}, "
                   f"heads that sum {model['head_branches']} branches, {numbers:,} parameters",
        "input": f"{seen['channels']}, 0 to 255, minus ({mean}){exposure}; {size}",
    }
    if "step" in source:
        recipe = f", recipe {source['recipe']}" if source.get("recipe") else ""
        facts["training"] = f"{source['step']:,} steps{recipe}"
    if "file" in source:
        facts["converted from"] = f"{source['file']} (SHA-256 {source.get('sha256', _UNKNOWN)})"
    if chosen := _CHOSEN.get((config["checkpoint"] or "").partition("/")[0]):
        facts["chosen as"] = chosen
    return facts


def _use(config: Mapping) -> str:
    text = ("    python -m snr_jax.predict --checkpoint THIS_FOLDER --images photos --out "
            "predictions\n\n"
            "The tensors of model.safetensors have the names and the layout of the published "
            "PyTorch code: `model.load_state_dict(safetensors.torch.load_file(...))`. ")
    model = config["model"]
    odd = [f"{key} {model[key]}" for key, published in
           (("head_branches", 2), ("stride_in", "conv1"), ("exposure", False), ("width", 64),
            ("stage_sizes", [3, 4, 23, 3]))
           if (list(model[key]) if key == "stage_sizes" else model[key]) != published]
    text += (f"That code computes something else with them, or nothing, since this network has "
             f"{', '.join(odd)}." if odd else "It computes the same there.")
    if any("['restitution" in key for key in config["checksums"]["variables"]):
        text += (" The tensors restitution1 to restitution3, which the restitution loss trains, "
                 "are no part of it: leave them out, or load with `strict=False`.")
    return text


def _unknown(config: Mapping) -> Iterator[str]:
    if not config["licence"]:
        yield "The licence: ask whoever made this before you use it."
    if not config["trained_on"]:
        yield "What data it was trained on."
    if not config["preprocessing"]["size"]:
        yield "At what size it saw images in its training."
    if not _scored(config):
        yield "How good it is: no score is recorded."
    if config.get("source", {}).get("heads") == []:
        yield "Classes: its heads have initial values, and it predicts nothing before training."


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines)
