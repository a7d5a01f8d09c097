"""DINOv2's vision transformer with a light head in PyTorch, under VFM-UDA's names of tensors.

Arrays are NCHW, images normalised RGB. It computes in whatever dtype it is given; positions are
resized in float32, as published.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SelfAttention(nn.Module):
    """All tokens [N, T, C] to all, written out."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, EPSILON) for _ in range(2))
        self.ls1, self.ls2 = Scale(width), Scale(width)
        self.attn, self.mlp = SelfAttention(width, heads), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class DINOv2(nn.Module):
    """Images [N, 3, H, W] → tokens [N, 1 + registers + h*w, C] after the last norm."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, grid: int, registers: int):
        super().__init__()
        self.grid, self.registers = grid, registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = PatchEmbed(width, patch)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPSILON)

    def positions(self, h: int, w: int) -> Tensor:
        """[1, C, h, w] of the patches."""
        square = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        if h == w == self.grid:
            return square
        if self.registers:
            how = {"size": (h, w), "antialias": True}
        else:
            how = {"scale_factor": ((h + 0.1) / self.grid, (w + 0.1) / self.grid)}
        return F.interpolate(square.float(), mode="bicubic", **how).to(square.dtype)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool [N, h*w], patches that the mask token stands for."""
        x = self.patch_embed(image)
        h, w = x.shape[2:]
        if mask is not None:
            hidden = mask.unflatten(1, (h, w))[:, None]
            x = torch.where(hidden, self.mask_token[..., None, None], x)
        x = (x + self.positions(h, w)).flatten(2).transpose(1, 2)
        first = [self.cls_token + self.pos_embed[:, :1]]
        first += [self.register_tokens] if self.registers else []
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in first), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, C, h, w]."""

    def __init__(self, channels: int):
        super().__init__(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Segmenter(nn.Module):
    """Images [N, 3, H, W] of any size → logits [N, C, H, W]."""

    def __init__(
        self, num_classes: int, *, width: int, depth: int, heads: int, patch: int = 14,
        grid: int = 37, registers: int = 0,
    ):
        super().__init__()
        self.patch, self.registers = patch, registers
        self.encoder = DINOv2(width, depth, heads, patch, grid, registers)
        half, quarter = width // 2, width // 4
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2, bias=False), ChannelNorm(half), nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2, bias=False), ChannelNorm(quarter),
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False), ChannelNorm(quarter),
        )
        self.out = nn.Conv2d(quarter, num_classes, 1, bias=False)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        size = image.shape[2:]
        h, w = (int(1.1 * side // self.patch) for side in size)
        image = F.interpolate(image, (h * self.patch, w * self.patch), mode="bilinear")
        tokens = self.encoder(image, mask)[:, 1 + self.registers:]
        logits = self.out(self.upscale(tokens.transpose(1, 2).unflatten(2, (h, w))))
        return F.interpolate(logits, size, mode="bilinear")
