"""The PyTorch twin of self-training with class mixing, held by numbers worked by hand."""

import colorsys
import copy
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import tensor
from torch.nn import functional as F

import twin as torch_twin
from tests.parity.pair import CLASSES, IGNORE, make_pair, random_image, random_label, to_torch
from twin import classmix as twin

LN3 = math.log(3)


class Given(torch.nn.Module):
    """In the network's place: gives these logits [N, C, H, W] and remembers how it was called."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        self.was_training, self.had_gradient = self.training, torch.is_grad_enabled()
        return self.logits, None


@pytest.mark.parametrize("i, momentum", [(0, 0), (1, 0.5), (9, 0.9), (98, 98 / 99), (99, 0.99),
                                         (1000, 0.99)])
def test_momentum(i, momentum):
    assert twin.teacher_momentum(i) == pytest.approx(momentum, abs=1e-15)


def test_momentum_at_most():
    assert [twin.teacher_momentum(i, most=0.6) for i in (0, 1, 2)] == [0, 0.5, 0.6]


def test_teacher_is_the_mean_of_the_parameters_alone():
    teacher, student = torch.nn.BatchNorm1d(2).double(), torch.nn.BatchNorm1d(2).double()
    for module, weight, mean in ((teacher, [1, 2], 5.0), (student, [3, 2], 7.0)):
        module.weight.data, module.running_mean[:] = tensor(weight).double(), mean
    twin.update_teacher(teacher, student, 0.75)
    assert teacher.weight.tolist() == [1.5, 2] and student.weight.tolist() == [3, 2]
    assert teacher.running_mean.tolist() == [5, 5]
    student.weight.data = tensor([0.1, 0.7]).double()
    twin.update_teacher(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)


# Two images of two pixels, the confidences 0.9 and 0.5, 0.969 and 0.967.
TWO_IMAGES = torch.log(tensor([[[[0.9, 0.3]], [[0.1, 0.5]], [[0.0, 0.2]]],
                               [[[0.0, 0.003]], [[0.031, 0.03]], [[0.969, 0.967]]]]).double())


@pytest.mark.parametrize("options, confident", [
    ({}, [[0, 0], [1, 0]]), ({"threshold": 0.8}, [[1, 0], [1, 1]]),
    ({"threshold": 0.4}, [[1, 1], [1, 1]]), ({"threshold": 0.99}, [[0, 0], [0, 0]])])
def test_pseudo_label(options, confident):
    """One share for the whole batch."""
    labels, q = twin.pseudo_label(Given(TWO_IMAGES), None, **options)
    assert labels.tolist() == [[[0, 1]], [[2, 2]]]
    assert q.shape == () and q == np.mean(confident)
    _, weights = twin.pseudo_label(Given(TWO_IMAGES), None, **options, per_pixel=True)
    assert weights[:, 0].tolist() == confident


def test_the_threshold_itself_is_confident():
    halves = Given(torch.zeros(1, 2, 1, 1))
    assert twin.pseudo_label(halves, None, 0.5)[1] == 1
    assert twin.pseudo_label(halves, None, 0.5001)[1] == 0


@pytest.mark.parametrize("evaluation", [False, True])
def test_teacher_has_no_gradient(evaluation):
    teacher = Given(TWO_IMAGES).train(evaluation)
    twin.pseudo_label(teacher, None, evaluation=evaluation)
    assert teacher.was_training != evaluation and not teacher.had_gradient


@pytest.mark.parametrize("n, chosen", [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (19, 10)])
def test_number_chosen(n, chosen):
    assert twin.number_chosen(n) == chosen


def test_the_ignored_id_is_one_of_the_classes():
    assert twin.classes_of(tensor([[4, IGNORE, 0, 4]], dtype=torch.uint8)) == [0, 4, IGNORE]


def test_mix():
    """Each image has classes of its own; the second pastes its ignored pixel."""
    labels = tensor([[[0, 1, 2, IGNORE]], [[0, 1, 2, IGNORE]]], dtype=torch.uint8)
    mask = twin.class_mask(labels, [[0, 2], np.array([IGNORE])])
    assert mask.tolist() == [[[True, False, True, False]], [[False, False, False, True]]]
    pseudo = tensor([[[3, 4, 3, 4]], [[4, 4, 3, 3]]])
    mixed = twin.mix(labels.long(), pseudo, mask)
    assert mixed.tolist() == [[[0, 4, 2, 4]], [[4, 4, 3, IGNORE]]]
    source = torch.arange(24.0).reshape(2, 3, 1, 4)
    mixed = twin.mix(source, -source, mask)
    assert mixed[0].tolist() == [[[0, -1, 2, -3]], [[4, -5, 6, -7]], [[8, -9, 10, -11]]]
    assert mixed[1].tolist() == [[[-12, -13, -14, 15]], [[-16, -17, -18, 19]],
                                 [[-20, -21, -22, 23]]]
    assert not twin.class_mask(labels, [[], []]).any()
    with pytest.raises(ValueError, match="differ"):
        twin.mix(source, source[:1], mask)


# Two classes with p = (3/4, 1/4) everywhere: cross-entropy ln 4 - ln 3 for class 0, ln 4 for 1.
@pytest.mark.parametrize("labels, mask, weight, loss", [
    ([0, 1], [True, False], 0.25, (math.log(4) - LN3 + math.log(4) / 4) / 2),
    ([1, IGNORE], [True, False], 0.25, math.log(4) / 2),  # over both pixels, not the valid one
    ([1, IGNORE], [False, True], 0.25, math.log(4) / 8),
    ([IGNORE, IGNORE], [True, True], 0.25, 0.0),
    ([0, 1], [False, False], [1.0, 0.0], (math.log(4) - LN3) / 2),  # by pixel
    ([0, 1], [True, True], [0.0, 0.0], (2 * math.log(4) - LN3) / 2),
])
def test_mix_loss(labels, mask, weight, loss):
    logits = tensor([LN3, 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    weight = torch.as_tensor(weight, dtype=torch.float64)
    weight = weight.view(1, 1, 2) if weight.dim() else weight
    value = twin.mix_loss(logits, tensor([[labels]]), tensor([[mask]]), weight)
    assert value.item() == pytest.approx(loss, abs=1e-12)


# The step ------------------------------------------------------------------------------------

RATE = {"base_rate": 2.5e-4, "max_iterations": 25}
THRESHOLD = 0.3  # about half of the tiny teacher's pixels
CHOSEN = [[0, 3, IGNORE], [1, 2, 4]]


def networks():
    """A student and a teacher of other weights, and a copy of each as it was."""
    student, teacher = (make_pair(salt=salt).twin for salt in ("student", "teacher"))
    return student, teacher, copy.deepcopy(student), copy.deepcopy(teacher)


def batches():
    images, target = (to_torch(random_image(i, 2, 17, 25)).double() for i in (0, 1))
    return images, torch.from_numpy(random_label(0, 2, 17, 25)), target


def stem(model):
    return model.bn1.running_mean, model.bn1.running_var


def moved(moments, conv, images):
    """The stem's running mean and variance after a forward in training mode."""
    x = conv(images)
    batch = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
    return tuple(0.9 * old + 0.1 * new for old, new in zip(moments, batch))


def bias_gradient(logits, labels, weights):
    """Of the main head's biases: sum w (p - 1[c = y]), as the interpolation sums to one."""
    valid = labels != IGNORE
    delta = logits.softmax(1).movedim(1, -1)[valid] - F.one_hot(labels[valid].long(), CLASSES)
    return (weights[valid][:, None] * delta).sum(0)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_step(per_pixel):
    """Statistics, terms and the update of the main head's biases, each put together by hand."""
    student, teacher, old, old_teacher = networks()
    images, labels, target = batches()
    terms = twin.classmix_step(student, teacher, {}, images, labels, target, CHOSEN, 0,
                               threshold=THRESHOLD, weight_per_pixel=per_pixel, **RATE)

    of_target = moved(stem(old_teacher), old_teacher.conv1, target)
    p = old_teacher(target)[0].softmax(1)
    confident = (p.amax(1) >= THRESHOLD).double()
    assert 0 < terms["q"] < 1 and terms["q"] == confident.mean()
    mask = torch.stack([sum(label == c for c in chosen) > 0
                        for label, chosen in zip(labels, CHOSEN)])
    mixed = images * mask[:, None] + target * ~mask[:, None]
    mixed_labels = labels.long() * mask + p.argmax(1) * ~mask
    assert (mixed_labels == IGNORE).any()
    weights = mask + ~mask * (confident if per_pixel else confident.mean())

    of_mixed = moved(moved(stem(old), old.conv1, images), old.conv1, mixed)
    for found, expected in ((stem(teacher), of_target), (stem(student), of_mixed)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)

    source_logits, mixed_logits = old(images)[0], old(mixed)[0]
    pixel = -mixed_logits.log_softmax(1).gather(1, mixed_labels[:, None] % IGNORE)[:, 0]
    by_hand = (weights * (mixed_labels != IGNORE) * pixel).sum() / labels.numel()
    expected = {"loss_source": torch_twin.cross_entropy(source_logits, labels),
                "loss_mix": by_hand, "q": confident.mean()}
    torch.testing.assert_close(terms, expected, rtol=1e-10, atol=0)

    per_valid = torch.ones(labels.shape).double() / (labels != IGNORE).sum()
    g = bias_gradient(source_logits, labels, per_valid)
    g = g + bias_gradient(mixed_logits, mixed_labels, weights / labels.numel())
    bias = old.layer6.conv2d_list[0].bias
    expected = bias - 10 * RATE["base_rate"] * (g + 5e-4 * bias)
    torch.testing.assert_close(student.layer6.conv2d_list[0].bias, expected, rtol=1e-10, atol=0)
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("options", [
    {}, {"repeated_updates": True, "train_snr": False}, {"phi": True}, {"freeze_bn": True}],
    ids=str)
def test_step_without_a_mix_is_the_source_step(options):
    """Nothing pasted and nobody confident. The teacher of the second update: the mean of both."""
    student, teacher, alone, old_teacher = networks()
    options = dict(options)
    phi = alone_phi = None
    if options.pop("phi", False):
        phi = torch_twin.Restitution(CLASSES, width=4).double()
        alone_phi = copy.deepcopy(phi)
    images, labels, target = batches()
    velocities, alone_velocities = {}, {}
    terms = twin.classmix_step(student, teacher, velocities, images, labels, target, [[], []], 1,
                               threshold=1.1, phi=phi, **options, **RATE)
    expected = torch_twin.source_step(alone, alone_velocities, images, labels, phi=alone_phi,
                                      rate=torch_twin.poly(2.5e-4, 1, 25), **options)
    assert terms == {**expected, "loss_mix": 0, "q": 0}
    assert velocities.keys() == alone_velocities.keys()
    for (name, mine), theirs in zip(student.named_parameters(), alone.parameters()):
        assert torch.equal(mine, theirs), name
    if phi is not None:
        assert torch.equal(phi.restitution1.weight, alone_phi.restitution1.weight)
    for mine, before, theirs in zip(teacher.parameters(), old_teacher.parameters(),
                                    student.parameters()):
        torch.testing.assert_close(mine, (before + theirs) / 2, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options, student_stays, teacher_stays", [
    ({}, False, False), ({"teacher_evaluation": True}, False, False),
    ({"freeze_bn": True}, True, True)], ids=str)
def test_whose_statistics_move(options, student_stays, teacher_stays):
    student, teacher, old, old_teacher = networks()
    twin.classmix_step(student, teacher, {}, *batches(), CHOSEN, 0, **options, **RATE)
    for model, before, stays in ((student, old, student_stays),
                                 (teacher, old_teacher, teacher_stays)):
        for (name, value), was in zip(model.named_buffers(), before.buffers(), strict=True):
            if value.is_floating_point():  # what counts the forwards is no statistic
                assert torch.equal(value, was) == stays, name


def test_statistics_of_a_teacher_in_evaluation_mode_are_averaged():
    student, teacher, _, old_teacher = networks()
    twin.classmix_step(
        student, teacher, {}, *batches(), CHOSEN, 1, teacher_evaluation=True, **RATE)
    for mine, before, theirs in zip(teacher.buffers(), old_teacher.buffers(), student.buffers()):
        if mine.is_floating_point():
            torch.testing.assert_close(mine, (before + theirs) / 2, rtol=1e-12, atol=1e-15)


def test_momentum_of_the_step():
    """With 0 at most, the teacher is the student after every update."""
    student, teacher, *_ = networks()
    twin.classmix_step(student, teacher, {}, *batches(), CHOSEN, 7, most_momentum=0.0, **RATE)
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# Strong augmentation -------------------------------------------------------------------------


def picture(*pixels):
    """[1, 3, 1, W] of RGB pixels."""
    return tensor(pixels, dtype=torch.float64).T[None, :, None]


def pixels(images):
    return images[0, :, 0].T


RED, BLACK = (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)


@pytest.mark.parametrize("factors, before, after", [
    ({"brightness": 1.25}, [(0.2, 0.4, 0.9)], [(0.25, 0.5, 1.0)]),
    ({"contrast": 0.75}, [(0.2,) * 3, (0.6,) * 3], [(0.25,) * 3, (0.55,) * 3]),
    ({"contrast": 0.5}, [RED, BLACK], [(0.57475, 0.07475, 0.07475), (0.07475,) * 3]),
    ({"contrast": 2.0}, [(0.0,) * 3, (0.4,) * 3], [(0.0,) * 3, (0.6,) * 3]),
    ({"saturation": 0.5}, [RED, (0.3,) * 3], [(0.6495, 0.1495, 0.1495), (0.3,) * 3]),
    ({"saturation": 0.0}, [(0, 1, 0), (0, 0, 1)], [(0.587,) * 3, (0.114,) * 3]),
    ({"hue": 1 / 3}, [RED, (0.2, 0.5, 0.2), (0.3,) * 3], [(0, 1, 0), (0.2, 0.2, 0.5), (0.3,) * 3]),
    ({"hue": -0.25}, [RED], [(0.5, 0, 1)]),
    ({"brightness": 1.25, "contrast": 0.5}, [(0.9,) * 3, (0.1,) * 3],
     [(0.78125,) * 3, (0.34375,) * 3]),  # clipped in between
    ({"contrast": 0.5, "brightness": 1.25}, [(0.9,) * 3, (0.1,) * 3],
     [(0.875,) * 3, (0.375,) * 3]),
], ids=str)
def test_jitter(factors, before, after):
    found = pixels(twin.colour_jitter(picture(*before), factors))
    torch.testing.assert_close(found, tensor(after).double(), rtol=0, atol=1e-6)


def test_jitter_of_each_image_alone():
    images = torch.cat([picture((0.2,) * 3, (0.6,) * 3), picture((0.0,) * 3, (0.2,) * 3)])
    found = twin.adjust_contrast(images, tensor([0.5, 1.5]).view(2, 1, 1, 1))
    expected = torch.cat([picture((0.3,) * 3, (0.5,) * 3), picture((0.0,) * 3, (0.25,) * 3)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("turns", [-0.25, 0.1, 0.25])
def test_hue_is_that_of_hsv(turns):
    """Among them colours with two equal channels."""
    colours = np.random.default_rng(0).integers(0, 4, (100, 3)) / 3
    expected = []
    for colour in colours:
        h, s, v = colorsys.rgb_to_hsv(*colour)
        expected.append(colorsys.hsv_to_rgb((h + turns) % 1, s, v))
    found = pixels(twin.adjust_hue(picture(*colours.tolist()), turns))
    torch.testing.assert_close(found, tensor(expected).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side, size", [(10, 1), (11, 1), (21, 3), (96, 9), (101, 11), (512, 51),
                                        (1024, 103)])
def test_blur_size(side, size):
    assert twin.blur_size(side) == size
    tenth = np.ceil(0.1 * side)
    assert size == int(np.floor(tenth - 0.5 + tenth % 2))


def test_blur_by_hand():
    """A bright pixel at the left rim: mirrored, its neighbour sees it once, itself never twice."""
    images = picture(*[(1.0, 0.5, 0.0)] + [BLACK] * 3)
    e = math.exp(-1 / (2 * 0.8**2))
    found = pixels(twin.gaussian_blur(images, 0.8, (1, 3)))
    expected = torch.outer(tensor([1, e, 0, 0]) / (1 + 2 * e), tensor([1, 0.5, 0]))
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("sigma", [0.15, 1.15])
def test_blur(sigma):
    """Against SciPy; 9 taps down and 3 across, and two images that do not mix."""
    images = torch.rand(2, 3, 90, 30, generator=torch.Generator().manual_seed(0)).double()
    expected = gaussian_filter(images.numpy(), (sigma, sigma), radius=(4, 1), mode="mirror",
                               axes=(2, 3))
    found = twin.gaussian_blur(images, sigma)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-12)
