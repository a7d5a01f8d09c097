"""How the published code loads its training images: PyTorch's Dataset with Pillow, on the CPU."""

import random

import numpy as np
import torch
from PIL import Image, ImageFilter

from snr_jax.core.labels import CLASSES
from snr_jax.data.samples import Sample

MEAN_BGR = np.array((104.00698793, 116.66876762, 122.67891434), np.float32)


class LineageDataset(torch.utils.data.Dataset):
    """What the published loaders do for one sample. size: height and width."""

    def __init__(self, samples: list[Sample], size: tuple[int, int]) -> None:
        self.samples, self.size = samples, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(self.samples[index].image).convert("RGB")
        label = Image.open(self.samples[index].label)
        if random.random() < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
            label = label.transpose(Image.FLIP_LEFT_RIGHT)
        image = image.resize(self.size[::-1], Image.BICUBIC)
        label = label.resize(self.size[::-1], Image.NEAREST)
        if random.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(radius=random.random()))
        pixels = np.asarray(image, np.float32)[:, :, ::-1] - MEAN_BGR
        chw = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        ids = np.asarray(label, np.float32)
        train_ids = np.full(ids.shape, -1, np.float32)
        for train_id, c in enumerate(CLASSES):
            train_ids[ids == c.label_id] = train_id
        return torch.from_numpy(chw), torch.from_numpy(train_ids)
