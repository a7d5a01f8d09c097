"""Class mixing, strong augmentation and masks, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snr_jax.core import mixing
from snr_jax.core.augment import to_network_input
from snr_jax.core.models.light_head import mask_size

KEY = jax.random.key(3)


def labels_with(*ids) -> np.ndarray:
    """uint8 [1,1,n], one pixel of each id."""
    return np.array([[ids]], np.uint8)


# --- which classes

@pytest.mark.parametrize("ids, count", [
    ((4,), 1), ((0, 3), 1), ((0, 1, 4), 2), ((0, 1, 2, 3, 4), 3), ((0, 1, 2, 255), 2), ((255,), 1),
])  # fmt: skip
def test_half_of_the_ids_rounded_up(ids, count):
    """(n + n mod 2) / 2 of the n ids that are there, the ignored one among them."""
    label = labels_with(*ids)
    for number in range(5):
        chosen = np.asarray(mixing.choose_classes(jax.random.key(number), label, 5))
        assert chosen.shape == (1, 6) and chosen.sum() == count
        assert {255 if c == 5 else c for c in np.flatnonzero(chosen[0])} <= set(ids)


@pytest.mark.parametrize("share, count", [(0.0, 0), (0.3, 3), (0.75, 8), (1.0, 10)])
def test_share_of_the_classes(share, count):
    label = labels_with(*range(10))
    assert np.asarray(mixing.choose_classes(KEY, label, 10, share=share)).sum() == count


def test_every_class_is_chosen_equally_often():
    label = np.repeat(labels_with(0, 1, 2, 3), 2000, axis=0)
    shares = np.asarray(mixing.choose_classes(KEY, label, 5)).mean(0)
    np.testing.assert_allclose(shares, [0.5, 0.5, 0.5, 0.5, 0, 0], atol=0.05)


def test_a_choice_depends_on_the_key_and_the_place_in_the_batch():
    label = np.repeat(labels_with(*range(8)), 6, axis=0)
    whole = np.asarray(mixing.choose_classes(KEY, label, 8))
    part = np.asarray(mixing.choose_classes(KEY, label[:2], 8, first_sample=4))
    np.testing.assert_array_equal(part, whole[4:])
    assert (whole[0] != whole[1:]).any()
    assert (whole != np.asarray(mixing.choose_classes(jax.random.key(4), label, 8))).any()


def test_paste_mask():
    label = np.array([[[0, 1], [2, 255]], [[0, 1], [2, 255]]], np.uint8)
    chosen = np.array([[True, False, True, False], [False, True, False, True]])
    expected = [[[True, False], [True, False]], [[False, True], [False, True]]]
    np.testing.assert_array_equal(mixing.paste_mask(label, chosen), expected)


# --- what the student sees

def test_strong_augmentation_depends_on_its_switches_and_the_place():
    image = np.random.default_rng(1).integers(0, 256, (40, 8, 9, 3), np.uint8)
    plain = np.asarray(to_network_input(image))

    def changed(**switches):
        found = np.asarray(mixing.strong_augment(KEY, image, **switches))
        return found, np.abs(found - plain).max((1, 2, 3)) > 0.5

    both, is_changed = changed()
    assert 0.7 <= is_changed.mean() <= 1  # 1 - 0.2 * 0.5 is 0.9
    assert 0.6 <= changed(with_blur=False)[1].mean() < 0.95  # 0.8
    assert 0.2 <= changed(with_jitter=False)[1].mean() <= 0.7  # 0.5, less where sigma is small
    assert not changed(with_jitter=False, with_blur=False)[1].any()
    part = mixing.strong_augment(KEY, image[:3], first_sample=7)
    # Images 0 to 2 stand at places 7 to 9.
    again = mixing.strong_augment(KEY, np.roll(image, 7, 0))[7:10]
    np.testing.assert_allclose(part, again, atol=1e-3)
    assert (np.abs(both - np.asarray(mixing.strong_augment(jax.random.key(4), image))) > 1).any()


@pytest.mark.parametrize("strength", [{}, {"strength": 0.1}])
def test_jitter_draws_from_the_whole_range(strength):
    """A gray image tells its brightness: factors fill [0.75, 1.25] and go no further."""
    image = np.full((400, 6, 6, 3), 100, np.uint8)
    found = np.asarray(mixing.strong_augment(KEY, image, with_blur=False, **strength))
    factors = (found + np.array([104.00698793, 116.66876762, 122.67891434]))[:, 0, 0, 0] / 100
    far = strength.get("strength", 0.25)
    assert 1 - far - 1e-3 <= factors.min() < 1.02 - far
    assert far + 0.98 < factors.max() <= far + 1.001


# --- what is hidden

@pytest.mark.parametrize("size, block, cells", [
    ((64, 96), 32, (2, 3)), ((33, 49), 16, (2, 3)), ((40, 56), 16, (2, 4)), ((33, 40), 40, (1, 1)),
    ((15, 8), 16, (1, 1)),
])  # fmt: skip
def test_masks_hide_whole_cells_of_a_grid(size, block, cells):
    """40 / 16 rounds to 2 and 56 / 16 to 4, the even ones; a small image is one cell."""
    image = np.random.default_rng(1).normal(50, 1, (40, *size, 3)).astype(np.float32)
    found = np.asarray(mixing.mask_blocks(KEY, image, block=block, ratio=0.5)["image"])
    visible = (found != 0).all(-1)
    assert ((found == image) | (found == 0)).all() and (visible == (found != 0).any(-1)).all()
    for axis, count, side in ((1, cells[0], size[0]), (2, cells[1], size[1])):
        changes = np.diff(visible, axis=axis).any((0, 3 - axis))  # where some image's cell ends
        ends = [-(-i * side // count) - 1 for i in range(1, count)]
        assert np.flatnonzero(changes).tolist() == ends
    whole = visible.reshape(40, -1).all(1)
    if cells == (1, 1):
        assert 8 < whole.sum() < 32 and (whole | ~visible.any((1, 2))).all()


def test_the_share_that_is_hidden():
    image = np.ones((50, 64, 64, 3), np.float32)

    def hidden(ratio):
        seen = mixing.mask_blocks(KEY, image, block=8, ratio=ratio)["image"]
        return (np.asarray(seen) == 0).mean()

    assert hidden(0.7) == pytest.approx(0.7, abs=0.03)  # of 3,200 cells: 4 deviations of 0.008
    assert hidden(0.0) == 0 and hidden(1.0) == 1


def test_a_mask_depends_on_the_key_and_the_place_in_the_batch():
    image = np.ones((6, 32, 48, 3), np.float32)
    whole = np.asarray(mixing.mask_blocks(KEY, image, block=8)["image"])
    part = np.asarray(mixing.mask_blocks(KEY, image[:2], block=8, first_sample=4)["image"])
    np.testing.assert_array_equal(part, whole[4:])
    assert all((whole[0] != other).any() for other in whole[1:])
    other = mixing.mask_blocks(jax.random.key(4), image, block=8)["image"]
    assert (whole != np.asarray(other)).any()


# --- what the teacher says

def test_pseudo_label_by_hand():
    p = np.array([[[[0.97, 0.02, 0.01], [0.4, 0.5, 0.1]]]])
    label, sure = mixing.pseudo_label(jnp.log(p), threshold=0.968)
    assert label.tolist() == [[[0, 1]]] and sure.tolist() == [[[True, False]]]


def test_pseudo_label_of_two_maps_is_by_the_mean_of_their_probabilities():
    """Not of their logits: 0.9 and 0.3 make 0.6, where the logits would make 0.66."""
    maps = [jnp.log(jnp.array([[[p]]])) for p in ([0.9, 0.1], [0.3, 0.7])]
    label, sure = mixing.pseudo_label(*maps, threshold=0.61)
    assert label.tolist() == [[[0]]] and sure.tolist() == [[[False]]]
    assert mixing.pseudo_label(*maps, threshold=0.59)[1].tolist() == [[[True]]]


def test_hidden_tokens_have_their_share_and_draws_of_their_own():
    """Of each image, by its place in the whole batch; the image is as it was."""
    def hidden(images, **options):
        found = mixing.mask_tokens(KEY, images, grid=mask_size, **options)
        np.testing.assert_array_equal(found["image"], images)
        return np.asarray(found["mask"])

    image = np.ones((6, 280, 420, 3), np.float32)
    whole = hidden(image)
    assert whole.shape == (6, 22, 33) and whole.dtype == bool
    assert abs(whole.mean() - 0.7) < 0.02 and abs(hidden(image, ratio=0.25).mean() - 0.25) < 0.02
    assert not hidden(image, ratio=0.0).any() and hidden(image, ratio=1.0).all()
    np.testing.assert_array_equal(hidden(image[:2], first_sample=4), whole[4:])
    assert all((whole[0] != other).any() for other in whole[1:])
