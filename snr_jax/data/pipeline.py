"""Streams of batches: tf.data reads, decodes and resizes; numpy uint8 comes out.

The order of the samples and every random number are functions of (seed, position in the
stream), so a stream can be opened at any step and needs no saved state.
"""

from __future__ import annotations  # what they name would start TensorFlow

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from snr_jax.core.errors import UserError
from snr_jax.core.labels import IGNORE
from snr_jax.data import decode
from snr_jax.data.decode import tf
from snr_jax.data.faults.inspection import inspect, refusal
from snr_jax.data.prepared.reading import Prepared
from snr_jax.data.rare import RareClasses
from snr_jax.data.samples import Labels, Sample

RESIZE = {"image": decode.resize_image, "label": decode.resize_label}
# Beyond the border: the mean that the network subtracts, rounded (RGB), and the id of no class.
PADDING = {"image": (123, 117, 104), "label": IGNORE}
CROP_TRIES = 10  # for a crop that holds the class that an image was drawn for, or enough classes

T = TypeVar("T")
# "image" uint8 [H,W,3] and, where there is one, "label" uint8 [H,W]; "extent" int32 [2]; "inside"
# int32 [4]
Arrays = "dict[str, tf.Tensor]"


def sample_at(position: int, num_samples: int, seed: int) -> int:
    """Which sample stands at a position of the endless stream: a new permutation per epoch."""
    epoch, place = divmod(int(position), num_samples)
    return int(_permutation(num_samples, seed, epoch)[place])


@functools.lru_cache(maxsize=8)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def train_batches(
    samples: Sequence[Sample], labels: Labels, *, size: tuple[int, int], batch_size: int, seed: int,
    start_step: int = 0, with_labels: bool = True, scale_range: tuple[float, float] | None = None,
    crop: tuple[int, int] | None = None, mirror: bool = True, rare: RareClasses | None = None,
    crop_class_share: float = 1.0, rim: tuple[float, float, float, float] | None = None,
    shard_index: int = 0, shard_count: int = 1, prepared: Prepared | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `start_step` on, shuffled anew in every epoch.

    Yields "image" uint8 RGB [B,h,w,3] and, `with_labels`, "label" uint8 trainIds [B,h,w] with 255
    ignored. With `mirror` half of the samples are mirrored; then all are resized to [h,w], which is
    `size`. With `scale_range` or `crop` it is `crop` (`size` by default): the sample is resized to
    `size` times a factor uniform in `scale_range`, padded at the bottom and right with the mean
    colour and 255 where smaller than `crop`, and cropped at random. Without labels, where some
    sample may be padded, there is also "extent" int32 [B,2]: the height and width that are image.

    With `rare` a class is drawn and then an image that holds it; the crop is the first of ten that
    holds it too, else the last. With `crop_class_share` below 1 a crop of which one class has more
    than that, of the pixels that have a class, is drawn again up to ten times; with both, until it
    is right in both.

    With `rim`, shares of the whole image at its top, bottom, left and right, there is also "inside"
    int32 [B,4]: where in the crop, in whole pixels, the rest of the image lies; first row and end,
    first column and end.

    `batch_size` is the global one; a shard yields its rows of it, B = batch_size / shard_count.
    Batches run across the ends of epochs. `prepared` is where the same samples lie at `size`; what
    comes from there is equal bit for bit. With `scale_range` they lie at any size that reaches its
    upper end and are resized from that: equal bit for bit where it is the files' own.

    Raises UserError, naming the file, for one that cannot be read or holds unknown label ids, and
    for an image and label of different shapes; ValueError for a shard that does not exist.
    """
    _require(samples, with_labels)
    if batch_size % shard_count or not 0 <= shard_index < shard_count:
        raise ValueError(f"no shard {shard_index} of {shard_count} in batches of {batch_size}")
    if prepared and not scale_range and prepared.size != tuple(size):
        raise ValueError(f"prepared data of {prepared.size}, where {size} is needed")
    rows = batch_size // shard_count
    draws = _Draws(size, seed, scale_range, crop, mirror, labels.lookup, rare is not None,
                   crop_class_share, rim)
    load = (
        _prepared_loader(prepared.reader(with_labels), draws) if prepared
        else _loader(samples, labels, draws.resized, with_labels)
    )

    def rows_of(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        positions = np.int64(step) * batch_size + shard_index * rows + np.arange(rows)
        return _drawn(positions, len(samples), seed, rare)

    steps = tf.data.Dataset.counter(start_step)
    order = steps.map(lambda step: tf.numpy_function(rows_of, [step], [tf.int64] * 3))
    dataset = order.unbatch().map(load, tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(rows, drop_remainder=True).prefetch(2)
    of_step = ([samples[i] for i in rows_of(step)[0]] for step in itertools.count(start_step))
    return _to_numpy(dataset, of_step, labels, prepared)


def _drawn(
    positions: np.ndarray, num_samples: int, seed: int, rare: RareClasses | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample, position and class, int64, at positions of the stream; -1 is no class."""
    if rare:
        drawn = [rare.draw(position, seed) for position in positions]
    else:
        drawn = [(sample_at(position, num_samples, seed), -1) for position in positions]
    indices, classes = np.array(drawn, np.int64).T
    return indices, positions, classes


class _Draws(NamedTuple):
    """What chance does to a sample of training: a function of the seed and its position alone.

    rare: the crop shall hold the class that the sample was drawn for. lookup: as `Labels.lookup`.
    class_share, rim: as `crop_class_share` and `rim` of `train_batches`.
    """

    size: tuple[int, int]
    seed: int
    scale_range: tuple[float, float] | None
    crop: tuple[int, int] | None
    mirror: bool
    lookup: np.ndarray
    rare: bool
    class_share: float
    rim: tuple[float, float, float, float] | None

    def at(self, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Whether it is mirrored, its size before the crop, and the crop's place in [0, 1)."""
        seeds = tf.stack([self.seed, position])
        draws = tf.random.stateless_uniform([4], seeds, dtype=tf.float64)
        low, high = self.scale_range or (1, 1)
        factor = low + (high - low) * draws[1]
        scaled = tf.cast(tf.round(tf.constant(self.size, tf.float64) * factor), tf.int32)
        return self.mirror & (draws[0] < 0.5), scaled, draws[2:]

    @property
    def may_pad(self) -> bool:
        """Whether some sample is smaller than the crop."""
        low = (self.scale_range or (1, 1))[0]
        return any(round(side * low) < cut for side, cut in zip(self.size, self.crop or self.size))

    def resized(self, sample: Arrays, position: tf.Tensor, wanted: tf.Tensor) -> Arrays:
        """A sample of the files, mirrored, resized and cropped."""
        mirror, scaled, _ = self.at(position)
        sample = {k: RESIZE[k](v, scaled, mirror) for k, v in sample.items()}
        return self.cut(sample, position, wanted)

    def cut(self, sample: Arrays, position: tf.Tensor, wanted: tf.Tensor) -> Arrays:
        """The crop of a sample that was resized, its label in trainIds. wanted: class to hold."""
        height, width = self.crop or self.size
        mirror, scaled, _ = self.at(position)
        place = tf.zeros(2, tf.int32)
        if self.scale_range or self.crop:
            place = self._place(sample, position, wanted)
            sample = _crop(sample, place, (height, width))
            if self.may_pad and "label" not in sample:
                sample["extent"] = tf.minimum(scaled, (height, width))
        if self.rim:
            box = _inside(self.rim, scaled, mirror) - tf.repeat(place, 2)
            sample["inside"] = tf.clip_by_value(box, 0, [height, height, width, width])
        if "label" in sample:  # before the padding: 255 in a file may be a class
            sample |= {"label": decode.to_train_ids(sample["label"], self.lookup)}
        if self.may_pad:
            sample = {key: _padded(key, value, (height, width)) for key, value in sample.items()}
        shapes = {"image": [height, width, 3], "label": [height, width], "extent": [2],
                  "inside": [4]}
        return {key: tf.ensure_shape(value, shapes[key]) for key, value in sample.items()}

    def _place(self, sample: Arrays, position: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        """Top and left of the crop: of its draws the first that is right."""
        crop = self.crop or self.size
        _, scaled, place = self.at(position)
        if not self.rare and self.class_share == 1:
            return _places(place[None], scaled, crop)[0]
        seeds = tf.stack([self.seed, -1 - position])
        places = tf.random.stateless_uniform([CROP_TRIES, 2], seeds, dtype=tf.float64)
        if self.class_share < 1:
            places = tf.concat([place[None], places], 0)
        train_ids = decode.to_train_ids(sample["label"], self.lookup)

        def is_right(place: tf.Tensor) -> tf.Tensor:
            ids = train_ids[place[0] : place[0] + crop[0], place[1] : place[1] + crop[1]]
            holds = tf.reduce_any(ids == tf.cast(wanted, tf.uint8)) if self.rare else True
            return holds & (self.class_share == 1 or _is_mixed(ids, self.class_share))

        return _first_place(_places(places, scaled, crop), is_right)


def _prepared_loader(
    read: Callable[[tf.Tensor, tf.Tensor], Arrays], draws: _Draws
) -> Callable[..., Arrays]:
    """What `_loader` gives, from prepared data: resized already unless the scale is random."""

    def load(index: tf.Tensor, position: tf.Tensor, wanted: tf.Tensor) -> Arrays:
        mirror, scaled, _ = draws.at(position)
        sample = read(index, mirror)
        if draws.scale_range:
            sample = {k: RESIZE[k](v, scaled) for k, v in sample.items()}
        return draws.cut(sample, position, wanted)

    return load


def eval_batches(
    samples: Sequence[Sample],
    labels: Labels,
    *,
    size: tuple[int, int],
    batch_size: int,
    label_size: str = "network",
    image_size: str = "network",
) -> Iterator[dict]:
    """All samples once, in their order; a short batch is padded, never dropped.

    Yields "image" uint8 RGB [B,h,w,3] and "label" uint8 trainIds [B,H,W] with 255 ignored, each at
    `size` for "network" and at the file's own for "full"; "valid" bool [B], False for padding
    (black, all ignored); "id" list of B str, "" for padding. A batch ends early where these sizes
    change. Raises as `train_batches`, and UserError for a sample without a label.
    """
    _require(samples, with_labels=True)
    sizes, lookup = {"image": image_size, "label": label_size}, labels.lookup
    for key, value in sizes.items():
        if value not in ("network", "full"):
            raise ValueError(f"{key}_size is {value!r}; it is 'network' or 'full'")
    scaled = [key for key, value in sizes.items() if value == "network"]

    def resize(sample: Arrays) -> Arrays:
        sample = sample | {key: RESIZE[key](sample[key], size) for key in scaled}
        return sample | {"label": decode.to_train_ids(sample["label"], lookup)}

    load = _loader(samples, labels, resize)
    order = tf.data.Dataset.range(len(samples))
    dataset = order.map(load, tf.data.AUTOTUNE, deterministic=True).prefetch(batch_size)
    loaded = _to_numpy(dataset, ([sample] for sample in samples), labels)
    pairs = zip((sample.id for sample in samples), loaded)
    for _, same_size in itertools.groupby(pairs, key=lambda pair: _shapes(pair[1])):
        for group in _chunks(same_size, batch_size):
            missing = batch_size - len(group)
            images = np.stack([arrays["image"] for _, arrays in group])
            labels = np.stack([arrays["label"] for _, arrays in group])
            yield {
                "image": np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]),
                "label": np.pad(labels, [(0, missing), (0, 0), (0, 0)], constant_values=IGNORE),
                "valid": np.arange(batch_size) < len(group),
                "id": [id for id, _ in group] + [""] * missing,
            }


def _shapes(arrays: Mapping[str, np.ndarray]) -> list[tuple[int, ...]]:
    return [array.shape for array in arrays.values()]


def _require(samples: Sequence[Sample], with_labels: bool) -> None:
    if not samples:
        raise UserError("a stream needs at least one sample; the split is empty")
    bare = [sample.image for sample in samples if sample.label is None]
    if with_labels and bare:
        raise UserError(
            f"{len(bare)} of {len(samples)} images have no label, {bare[0]} the first; without "
            "labels a set serves as the target of training alone, not as source or for evaluation"
        )


def _loader(
    samples: Sequence[Sample], labels: Labels, resize: Callable, with_labels: bool = True
) -> Callable[..., Arrays]:
    """index, ... → {"image": uint8 [h,w,3], "label": uint8 trainIds [h,w]}, as `resize` makes them.

    `resize` gets the same dict at the files' size, with file ids, and the further arguments; it
    gives trainIds.
    """
    image_paths = tf.constant([sample.image for sample in samples])
    label_paths = tf.constant([sample.label or "" for sample in samples])

    def load(index: tf.Tensor, *more: tf.Tensor) -> Arrays:
        image = decode.read_image(image_paths[index])
        if not with_labels:
            return resize({"image": image}, *more)
        ids = decode.read_label_ids(label_paths[index], labels)
        sizes = tf.shape(image, tf.int64), tf.shape(ids, tf.int64)
        tf.debugging.assert_equal(decode.alike(*sizes), True, "shapes differ")
        return resize({"image": image, "label": ids}, *more)

    return load


def _places(draws: tf.Tensor, size: tf.Tensor, crop: tuple[int, int]) -> tf.Tensor:
    """Top and left of crops, int32 [tries,2], by draws uniform in [0, 1)."""
    room = tf.cast(tf.maximum(size - crop, 0) + 1, tf.float64)
    return tf.cast(draws * room, tf.int32)


def _first_place(places: tf.Tensor, is_right: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """The first place that is right, else the last."""
    found = [is_right(place) for place in tf.unstack(places)[:-1]]
    return places[tf.argmax(tf.cast(tf.stack([*found, True]), tf.int32))]


def _is_mixed(train_ids: tf.Tensor, share: float) -> tf.Tensor:
    """Whether no class has more than that share of the pixels that have one, of which some do."""
    counts = tf.math.bincount(tf.reshape(tf.cast(train_ids, tf.int32), [-1]), minlength=IGNORE + 1,
                              maxlength=IGNORE + 1)[:IGNORE]
    total = tf.reduce_sum(counts)
    most = tf.cast(tf.reduce_max(counts), tf.float64)
    return (total > 0) & (most <= share * tf.cast(total, tf.float64))


def _inside(
    rim: tuple[float, float, float, float], size: tf.Tensor, mirror: tf.Tensor
) -> tf.Tensor:
    """Where in an image of that size its rim is not, int32 [4]: rows from and to, columns too."""
    top, bottom, left, right = rim
    left_and_right = tf.where(mirror, [right, left], [left, right])
    lost = tf.stack([[top, bottom], left_and_right])  # [2,2]: of rows and columns, at either end
    lost = tf.cast(tf.round(tf.cast(lost, tf.float64) * tf.cast(size, tf.float64)[:, None]),
                   tf.int32)
    return tf.reshape(tf.stack([lost[:, 0], size - lost[:, 1]], 1), [4])


def _crop(sample: Arrays, place: tf.Tensor, crop: tuple[int, int]) -> Arrays:
    top, left = tf.unstack(place)
    return {
        key: value[top : top + crop[0], left : left + crop[1]] for key, value in sample.items()
    }


def _padded(key: str, value: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """An image or label of at least that size, by `PADDING` below and at the right."""
    if key not in PADDING:
        return value
    fill = tf.constant(PADDING[key], tf.uint8)
    lack = tf.maximum(tf.constant(size) - tf.shape(value)[:2], 0)
    # Adding to zeros and back, modulo 256: tf.pad knows one constant, the colour has three.
    below_and_right = [[0, lack[0]], [0, lack[1]]] + [[0, 0]] * (len(value.shape) - 2)
    return tf.pad(value - fill, below_and_right) + fill


def _to_numpy(
    dataset: tf.data.Dataset, samples_of: Iterable[Sequence[Sample]], labels: Labels,
    prepared: Prepared | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The dataset's elements; `samples_of` gives the samples of each, to explain an error."""
    decode.keep_freed_memory()
    # The thread that tunes a stream's buffers can miss the end of it, and then holds up whoever
    # drops the stream until its period is over, up to a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    elements = dataset.with_options(options).as_numpy_iterator()
    for samples in samples_of:
        try:
            element = next(elements)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            if prepared:
                raise prepared.fault(error) from error
            findings = [inspect(s, labels) for s in samples]
            faults = [fault for finding in findings for fault in finding.faults]
            if not faults:
                raise
            raise refusal(faults, labels) from error
        yield element


def _chunks(items: Iterator[T], length: int) -> Iterator[list[T]]:
    while chunk := list(itertools.islice(items, length)):
        yield chunk
