"""The style gap of source and target, as networks see it: before and after IN or SNR, by channel.

The images are those of the validations, at most MAX_IMAGES of each domain, spread over the split.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from snr_jax.core.augment import to_network_input
from snr_jax.core.errors import UserError
from snr_jax.core.models.backbone import Size
from snr_jax.core.models.create import Network
from snr_jax.core.models.deeplab import DeepLab, map_size
from snr_jax.core.models.layers import at_least_float32
from snr_jax.core.models.light_head import ViTSegmenter, mask_size
from snr_jax.data import pipeline
from snr_jax.data.splits import Split
from snr_jax.report.style import Place, Points, StyleGap, distance, moments
from snr_jax.runs import network
from snr_jax.runs.experiment import open_splits
from snr_jax.studies.comparison import Folders
from snr_jax.workdir import record

MAX_IMAGES = 60
MIN_PLACES = 4  # of the feature map, from which on an image has a point of a class
BATCH = 2  # images at a time: the features of a batch are the memory that it takes


def style_gaps(
    folders: Folders, interrupt: Callable[[], None] = lambda: None
) -> dict[str, StyleGap]:
    """The gap by name, of the first run under it. folders: as of `comparison.compare`.

    Raises UserError where the last of the runs has no validation of the target.
    """
    config = record.configuration(record.read(folders[list(folders)[-1]][0]))
    splits = open_splits(config)
    if "target_val" not in splits:
        raise UserError("--features compares the validation images of source and target, and the "
                        "last run has none of the target. Name a run with target.val_split last")
    source, target = (_spread(splits[role]) for role in ("source_val", "target_val"))
    found = {}
    for name, (folder, *_) in folders.items():
        interrupt()
        model, variables, _ = network.load(str(folder))
        found[name] = style_gap(model, variables, source, target)
    return found


def _spread(split: Split) -> Split:
    samples = split.samples[:: -(-len(split.samples) // MAX_IMAGES)]
    return split._replace(samples=samples)


def style_gap(model: Network, variables: dict, source: Split, target: Split) -> StyleGap:
    """As one network sees all images of two splits. variables: numpy."""
    observe = jax.jit(make_observe(model))
    variables = jax.device_put(variables)
    styles, points = zip(*(_observed(observe, variables, split) for split in (source, target)))
    ours, theirs = ({place: moments(*of_images) for place, of_images in style.items()}
                    for style in styles)
    gaps = {place: distance(ours[place], theirs[place]) for place in ours}
    places = tuple(
        Place(name, gaps[name, "before"], gaps.get((name, "after")))
        for name, side in gaps if side == "before"
    )
    features = np.concatenate([feature for feature, _ in points])
    train_id = np.concatenate([ids for _, ids in points])
    is_target = np.repeat([False, True], [len(ids) for _, ids in points])
    return StyleGap(
        places, Points(in_two_dimensions(features), train_id, is_target),
        matched(features, train_id, is_target), (len(source.samples), len(target.samples)))


class _Layer(NamedTuple):
    """Where features are looked at: behind a module of that name."""

    module: str
    called: str
    changed: bool  # by the next of the network's SNR blocks


def _layers(model: Network) -> list[_Layer]:
    if isinstance(model, DeepLab):
        changed = 3 if model.norm_restitution != "none" else 0
        return [_Layer(f"layer{i}_{size - 1}", f"layer{i}", i <= changed)
                for i, size in enumerate(model.stage_sizes, 1)]
    after = model.snr_after if model.norm_restitution != "none" else ()
    quarters = {max(model.depth * i // 4 - 1, 0) for i in range(1, 5)}
    return [_Layer(f"blocks_{i}", f"block {i}", i in after) for i in sorted({*after, *quarters})]


def _as_map(model: Network, x: jax.Array, size: Size) -> jax.Array:
    """Features [N,h,w,C] of a layer; a transformer's are tokens [N,T,C], the patches' the last."""
    if not isinstance(model, ViTSegmenter):
        return x
    return x[:, 1 + model.registers:].reshape(len(x), *size, -1)


def make_observe(model: Network) -> Callable[..., tuple[dict, jax.Array, jax.Array]]:
    """observe(variables, image, label) → styles, features by class, and their counts.

    image uint8 [N,H,W,3], label uint8 [N,H,W]. styles: (layer, "before" or "after") → mean and
    variance over the pixels, [N,C] each. features [N,K,C]: the mean of the last layer's over the
    places of each class, of which there are counts [N,K].
    """
    layers = _layers(model)
    modules, end = {layer.module for layer in layers}, (layers[-1].called, "before")
    size_of = mask_size if isinstance(model, ViTSegmenter) else map_size

    def observe(
        variables: dict, image: jax.Array, label: jax.Array
    ) -> tuple[dict, jax.Array, jax.Array]:
        size = size_of(image.shape[1:3])

        def is_last(module: nn.Module, method: str) -> bool:
            return method == "__call__" and module.name in modules

        output, kept = model.apply(
            variables, to_network_input(image, model.backbone.preprocessing), train=False,
            output_size=size, capture_intermediates=is_last, mutable=["intermediates"])
        kept, made, features = kept["intermediates"], iter(output.snr), {}
        kept = kept.get("encoder", kept)
        for layer in layers:
            features[layer.called, "before"] = _as_map(
                model, kept[layer.module]["__call__"][0], size)
            if layer.changed:
                features[layer.called, "after"] = next(made).restituted
        features = {place: at_least_float32(x) for place, x in features.items()}
        styles = {place: (x.mean((1, 2)), x.var((1, 2))) for place, x in features.items()}
        # The nearest pixel of each place of the map, whose corners are the image's.
        rows, columns = (np.rint(np.linspace(0, n - 1, m)).astype(int)
                         for n, m in zip(label.shape[1:], size, strict=True))
        held = label[:, rows][:, :, columns, None] == jnp.arange(model.num_classes)  # [N,h,w,K]
        held = held.astype(features[end].dtype)
        counts = held.sum((1, 2))
        sums = jnp.einsum("nhwk,nhwc->nkc", held, features[end],
                          precision=jax.lax.Precision.HIGHEST)
        return styles, sums / jnp.maximum(counts, 1)[..., None], counts

    return observe


def _observed(
    observe: Callable, variables: dict, split: Split
) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of every place [N,C], and the points: features [n,C] and trainIds [n]."""
    styles, features, train_ids = {}, [], []
    for batch in pipeline.eval_batches(
        split.samples, split.labels, size=split.size, batch_size=BATCH
    ):
        style, of_class, counts = jax.device_get(
            observe(variables, batch["image"], batch["label"]))
        valid = batch["valid"]
        for place, of_images in style.items():
            styles.setdefault(place, []).append([each[valid] for each in of_images])
        image, ids = np.nonzero((counts >= MIN_PLACES) & valid[:, None])
        features.append(of_class[image, ids])
        train_ids.append(ids)
    joined = {place: [np.concatenate(each) for each in zip(*parts)]
              for place, parts in styles.items()}
    return joined, (np.concatenate(features), np.concatenate(train_ids))


def matched(features: np.ndarray, train_id: np.ndarray, is_target: np.ndarray) -> float:
    """Share of the target's points whose nearest point of the source is of the same class."""
    source, target = features[~is_target], features[is_target]
    if not (len(source) and len(target)):
        return math.nan
    nearest = [np.square(source - point).sum(1).argmin() for point in target]
    return float(np.mean(train_id[~is_target][nearest] == train_id[is_target]))


def in_two_dimensions(features: np.ndarray) -> dict[str, np.ndarray]:
    """The points [n,C] by PCA, and by t-SNE where there are enough of them; [n,2] each."""
    if not len(features):
        return {"PCA": np.zeros((0, 2))}
    centered = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = np.pad(axes[:2], [(0, max(2 - len(axes), 0)), (0, 0)])
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    axes = axes * np.where(largest < 0, -1, 1)  # a decomposition leaves the signs open
    found = {"PCA": centered @ axes.T}
    if len(features) >= 10:
        found["t-SNE"] = _t_sne(centered)
    return found


def _t_sne(points: np.ndarray) -> np.ndarray:
    """On one thread: sums of several come in any order, and the picture with them."""
    from sklearn.manifold import TSNE  # slow, and needed for this alone
    from threadpoolctl import threadpool_limits

    perplexity = min(30, (len(points) - 1) / 3)
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(
            points)
