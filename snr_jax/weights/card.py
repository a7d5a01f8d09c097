"""The model card of a weights folder: what its config.json says, for people and for hubs.

Nothing is invented: what is not recorded is listed as not known.
"""

from collections.abc import Callable, Iterator, Mapping
from math import isfinite, nan
from typing import Any, NamedTuple

import yaml

from snr_jax.core.models.dinov2 import SIZES

# Identifiers of licences that the hubs know; other words are told beside "other".
LICENCES = (
    "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "gpl-2.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "mpl-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "unlicense",
)
_UNKNOWN = "not recorded"
_NORMS = {"none": "without restitution", "in": "instance norm",
          "snr": "SNR (style normalisation and restitution)"}
# What the checkpoints of a run were chosen by.
_CHOSEN = {
    "final": "the last step of its training",
    "teacher": "the mean teacher at the last step of its training",
    "best_source": "the best on the source's validation images",
    "oracle_target": "the best on labelled images of the target, which adaptation does not have: "
                     "its scores there flatter it",
}


class _Kind(NamedTuple):
    """What a card says of one kind of network, from what config.json has under `model`."""

    tag: str
    title: Callable[[Mapping], str]
    sizes: Callable[[Mapping], str]
    code: str  # how the published code takes the tensors
    odd: Callable[[Mapping], list[str]]  # arguments for which that code computes something else
    trained: str  # the tensors of training alone


def _resnet_title(model: Mapping) -> str:
    norm = model["norm_restitution"]
    where = "" if norm == "none" else " after its first three layers"
    return f"a ResNet DeepLab-v2 ({_NORMS[norm]}{where})"


def _resnet_sizes(model: Mapping) -> str:
    return (f"blocks {', '.join(map(str, model['stage_sizes']))}, width {model['width']}, heads "
            f"that sum {model['head_branches']} branches")


def _resnet_odd(model: Mapping) -> list[str]:
    return [f"{key} {model[key]}" for key, published in
            (("head_branches", 2), ("stride_in", "conv1"), ("exposure", False), ("width", 64),
             ("stage_sizes", [3, 4, 23, 3]))
            if (list(model[key]) if key == "stage_sizes" else model[key]) != published]


def _with_snr(model: Mapping) -> bool:
    return bool(model["snr_after"]) and model["norm_restitution"] != "none"


def _dinov2_title(model: Mapping) -> str:
    size = {key: model[key] for key in ("width", "depth", "heads")}
    name = next((f"-{letter.upper()}" for letter, of in SIZES.items() if of == size), "")
    blocks = f"block{'s' * (len(model['snr_after']) > 1)} {', '.join(map(str, model['snr_after']))}"
    snr = f" ({_NORMS[model['norm_restitution']]} after {blocks})" if _with_snr(model) else ""
    return f"a DINOv2 ViT{name}{snr} with a light head"


def _dinov2_sizes(model: Mapping) -> str:
    return (f"{model['depth']} blocks, width {model['width']}, {model['heads']} heads, "
            f"patches of {model['patch']}, {model['registers']} registers")


def _dinov2_odd(model: Mapping) -> list[str]:
    size = {key: model[key] for key in ("width", "depth", "heads")}
    odd = [f"{key} {value}" for key, value in size.items()] if size not in SIZES.values() else []
    odd += [f"{key} {model[key]}" for key, published in
            (("patch", 14), ("grid", 37), ("registers", 0)) if model[key] != published]
    return odd + (["SNR blocks (encoder.snr_*), which are no part of it"] if _with_snr(model)
                  else [])


_KINDS = {
    "resnet": _Kind(
        "deeplab", _resnet_title, _resnet_sizes,
        "The tensors of model.safetensors have the names and the layout of the published "
        "PyTorch code: `model.load_state_dict(safetensors.torch.load_file(...))`. ",
        _resnet_odd, "restitution1 to restitution3",
    ),
    "dinov2": _Kind(
        "dinov2", _dinov2_title, _dinov2_sizes,
        "The tensors of model.safetensors have the names and the layout of VFM-UDA's network in "
        "PyTorch: `network.load_state_dict(safetensors.torch.load_file(...), strict=False)`; "
        "token_masking.mask_token, which is not among them, is encoder.mask_token once more. Its "
        "code takes square images alone. ",
        _dinov2_odd, "restitution_*",
    ),
}


def card(name: str, config: Mapping, numbers: int) -> str:
    """README.md, in markdown after the front matter that hubs read.

    config: the content of config.json. numbers: how many parameters the network has.
    """
    model = config["model"]
    parts = [
        f"# {name}",
        f"Semantic segmentation into {model['num_classes']} classes by the JAX/Flax package "
        f"`snr_jax`: {_KINDS[model['backbone']].title(model)}.",
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
        "tags": ["semantic-segmentation", "jax", "flax",
                 _KINDS[config["model"]["backbone"]].tag],
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
    exposure = ", each image scaled to one mean brightness first" if seen["exposure"] else ""
    size = "{} x {}".format(*seen["size"]) if seen["size"] else f"size in training {_UNKNOWN}"
    facts = {
        "licence": config["licence"] or "not stated",
        "trained on": config["trained_on"] or _UNKNOWN,
        "network": f"{_KINDS[model['backbone']].sizes(model)}, {numbers:,} parameters",
        "input": f"{_input(seen)}{exposure}; {size}",
    }
    if "step" in source:
        recipe = f", recipe {source['recipe']}" if source.get("recipe") else ""
        facts["training"] = f"{source['step']:,} steps{recipe}"
    if "file" in source:
        facts["converted from"] = f"{source['file']} (SHA-256 {source.get('sha256', _UNKNOWN)})"
    if chosen := _CHOSEN.get((config["checkpoint"] or "").partition("/")[0]):
        facts["chosen as"] = chosen
    return facts


def _input(seen: Mapping) -> str:
    """What becomes of the numbers of an image, 0 to 255."""
    def told(values: list[float]) -> str:
        return f"({', '.join(f'{value:.3f}' for value in values)})"

    if "unit" not in seen:
        return f"{seen['channels']}, 0 to 255, minus {told(seen['mean'])}"
    return (f"{seen['channels']}, 0 to 255, / {seen['unit']:g}, minus {told(seen['mean'])}, "
            f"over {told(seen['deviation'])}")


def _use(config: Mapping) -> str:
    kind = _KINDS[config["model"]["backbone"]]
    text = ("    python -m snr_jax.predict --checkpoint THIS_FOLDER --images photos --out "
            f"predictions\n\n{kind.code}")
    odd = kind.odd(config["model"])
    text += (f"That code computes something else with them, or nothing, since this network has "
             f"{', '.join(odd)}." if odd else "It computes the same there.")
    if any("['restitution" in key for key in config["checksums"]["variables"]):
        text += (f" The tensors {kind.trained}, which the restitution loss trains, "
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
