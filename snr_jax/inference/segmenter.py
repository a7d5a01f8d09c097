"""A network that segments photographs from Python, and what it says of one."""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from snr_jax.core.errors import UserError
from snr_jax.core.files import user_path
from snr_jax.core.labels import Classes
from snr_jax.core.models.backbone import architecture
from snr_jax.core.models.create import backbone_of
from snr_jax.inference.photos import draw_color, draw_overlay, to_photo
from snr_jax.inference.tiles import Program, create_network, segment_all
from snr_jax.inference.views import Size, create_view
from snr_jax.runs import network
from snr_jax.workdir.checkpoints import Checkpoint

_OF_CLASSES = ("class_names", "class_colors")


@dataclass(frozen=True, eq=False)
class Result:
    """What a network says of an image of H x W pixels.

    labels: trainIds uint8 [H,W]; `classes[i]` is the name and colour of trainId i. confidence: the
    probability of that class, float32 [H,W] in 0..1. image: what was segmented, uint8 RGB [H,W,3].
    """

    image: np.ndarray = field(repr=False)
    labels: np.ndarray
    confidence: np.ndarray
    classes: Classes = field(repr=False)

    def color(self) -> Image.Image:
        """The labels in the colours of the classes, RGB of the image's size."""
        return Image.fromarray(draw_color(self.labels, self.classes))

    def overlay(self) -> Image.Image:
        """The image tinted by class, RGB of its size."""
        return Image.fromarray(draw_overlay(self.image, self.labels, self.classes))


class Segmenter:
    """segmenter(image) → Result; segmenter([image, ...]) → a list of them. Threads may share one.

    An image is a path, a PIL image, or an array: uint8 [H,W,3] RGB, [H,W,4] RGBA or [H,W] gray
    (uint16 is scaled). It is turned as its EXIF says and has any size; results have that size.

    model, variables ({"params", "batch_stats"}, numpy), meta (what a checkpoint says of itself): of
    `load`, or of one's own training. classes: their names and colours. view: at which size it sees
    an image, and why.
    """

    def __init__(
        self, model: nn.Module, variables: Mapping, meta: Mapping | None = None, **view: Any
    ) -> None:
        """model: a `DeepLab`, or any Flax module that is called as one and has `num_classes`.

        meta: "class_names" and "class_colors" tell the classes, else their number, 19, 16 or 13.
        view: size, tile, overlap and flip, as `load` has them. Raises UserError for what no view
        can be, and where nothing tells the classes.
        """
        self.model = model
        self.variables = jax.tree.map(np.array, dict(variables))  # training takes its arrays over
        known = (architecture(model) if hasattr(model, "backbone")
                 else {"num_classes": model.num_classes})
        self.meta = {"model": known, **(meta or {})}
        self.classes = network.classes_of(self.meta)
        if len(self.classes) != model.num_classes:
            raise UserError(f"the network has {model.num_classes} classes and its meta names "
                            f"{len(self.classes)}; expected as many class_names")
        self.view = create_view(self.meta, **view)
        self._network = create_network(model, self.variables)
        self._compiling = threading.Lock()
        self._asked = view

    def __call__(self, images: Any, *, batch_size: int = 1) -> Result | list[Result]:
        """Segments an image, or several in batches.

        batch_size: images (or tiles) of one size that the network sees at a time. Raises UserError
        for what cannot be read as an image and for a size that the memory does not hold, TypeError
        for what is no image at all.
        """
        if not _is_several(images):
            return self._segment([to_photo(images)], 1)[0]
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; expected a whole number, at least 1")
        photos, results = _photos(images), []
        while chunk := list(islice(photos, batch_size)):
            results += self._segment(chunk, batch_size)
        return results

    def __repr__(self) -> str:
        return f"<Segmenter of {len(self.classes)} classes, sees images {self.view}>"

    def prepare(self) -> None:
        """Compiles the network for the size that it sees, as the first image would have it do.

        Nothing happens where each image is seen at its own size. Raises UserError where the memory
        does not hold it.
        """
        if size := self.view.size or self.view.tile:
            self._compiled(*size, 1)

    def with_variables(self, variables: Mapping) -> "Segmenter":
        """The same network after a training: other values, no scores, the same view.

        variables: {"params", "batch_stats"}, as `TrainState.variables`; they are copied.
        """
        meta = {key: self.meta[key] for key in _OF_CLASSES if key in self.meta}
        if seen := self.meta.get("source", {}).get("input_size"):
            meta["source"] = {"input_size": seen}
        return Segmenter(self.model, variables, meta, **self._asked)

    def _segment(self, photos: list[Image.Image], batch_size: int) -> list[Result]:
        size, tile, overlap, flip, _ = self.view
        found = segment_all(self._compiled, photos, size=size, tile=tile, overlap=overlap,
                            flip=flip, batch_size=batch_size,
                            map_size=backbone_of(self.model).map_size)
        return [Result(np.asarray(photo), labels, confidence, self.classes)
                for photo, (labels, confidence) in zip(photos, found, strict=True)]

    def _compiled(self, height: int, width: int, count: int) -> Program:
        with self._compiling:  # once, though several threads ask for it
            return self._network(height, width, count)


def load(
    path: str | os.PathLike | Checkpoint, *, dtype: str = "auto", size: Size | str | None = None,
    tile: Size | None = None, overlap: int | None = None, flip: bool = False,
) -> Segmenter:
    """The network of a run, of a checkpoint or of a folder of weights.

    dtype: "float32", "bfloat16" or "auto", float32 on a CPU and else bfloat16. size: (height,
    width) in pixels at which it sees each image (or tile), or "own"; by default "own" with tiles,
    else the target size of its training, or (512, 1024) where none is recorded. tile: (height,
    width) of tiles of the image at its own size, each seen alone and then averaged. overlap: pixels
    that neighbouring tiles share at least; by default an eighth of their shorter side. flip:
    average with the mirrored image's prediction.
    Raises UserError for a checkpoint that is missing or damaged, and for values that cannot be.
    """
    view = {"size": size, "tile": tile, "overlap": overlap, "flip": flip}
    create_view({}, **view)  # a mistake is told before anything is read
    where = path if isinstance(path, Checkpoint) else user_path(os.fspath(path))
    model, variables, meta = network.load(where, dtype=dtype)
    return Segmenter(model, variables, meta, **view)


def _is_several(images: Any) -> bool:
    single = isinstance(images, str | bytes | os.PathLike | Mapping) or hasattr(images, "__array__")
    return isinstance(images, Iterable) and not single


def _photos(images: Iterable) -> Iterator[Image.Image]:
    for number, image in enumerate(images):
        try:
            yield to_photo(image)
        except (UserError, TypeError) as error:
            raise type(error)(f"images[{number}]: {error}") from error
