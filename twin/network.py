"""The network in PyTorch, and the classifiers of the restitution loss.

Tensor names are those of the published checkpoints, arrays are NCHW (images BGR minus mean), labels
[N, H, W] with 255 ignored. It computes in whatever dtype, device, memory format and autocast
context it is given.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twin.losses import restitution

EXPANSION = 4
DILATIONS = (6, 12, 18, 24)  # of the heads' branches


class Bottleneck(nn.Module):
    """1x1 (the stride is here) -> 3x3 dilated -> 1x1, each with batch norm, plus the shortcut."""

    def __init__(self, channels: int, planes: int, stride: int, dilation: int, first: bool):
        super().__init__()
        out = planes * EXPANSION
        self.conv1 = nn.Conv2d(channels, planes, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Gate(nn.Module):
    """Channel attention a = sigmoid(W2 relu(W1 mean_hw(R) + b1) + b2): [N, C, 1, 1]."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, residual: Tensor) -> Tensor:
        pooled = residual.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class Head(nn.Module):
    """Dilated 3x3 classifiers, summed; all four hold parameters, the first `branches` compute."""

    def __init__(self, channels: int, num_classes: int, branches: int):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=d, dilation=d) for d in DILATIONS
        )
        self.branches = branches

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        logits = sum(conv(x) for conv in self.conv2d_list[: self.branches])
        logits = logits.to(self.conv2d_list[0].weight.dtype)  # float32 again under autocast
        return F.interpolate(logits, size, mode="bilinear", align_corners=True)


class DeepLab(nn.Module):
    """ResNet DeepLab-v2 at output stride 8 with two heads and, after layers 1 to 3, SNR.

    `norm_restitution` is "snr", "in" (instance norm alone) or "none".
    """

    def __init__(
        self,
        num_classes: int = 19,
        stage_sizes: Sequence[int] = (3, 4, 23, 3),
        width: int = 64,
        norm_restitution: str = "snr",
        head_branches: int = 2,
    ):
        super().__init__()
        if norm_restitution not in ("snr", "in", "none"):
            raise ValueError(f"norm_restitution is 'snr', 'in' or 'none', not {norm_restitution!r}")
        self.norm_restitution = norm_restitution
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for layer, (size, stride, dilation) in enumerate(
            zip(stage_sizes, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1
        ):
            planes = width * 2 ** (layer - 1)
            blocks = []
            for i in range(size):
                blocks.append(
                    Bottleneck(channels, planes, stride if i == 0 else 1, dilation, i == 0)
                )
                channels = planes * EXPANSION
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
        self.layer5 = Head(channels // 2, num_classes, head_branches)  # auxiliary
        self.layer6 = Head(channels, num_classes, head_branches)  # main
        snr_channels = {k: width * EXPANSION * 2 ** (k - 1) for k in (1, 2, 3)}
        if norm_restitution != "none":
            for k, c in snr_channels.items():
                setattr(self, f"IN{k}", nn.InstanceNorm2d(c, affine=True))
        if norm_restitution == "snr":
            for k, c in snr_channels.items():
                setattr(self, f"style_reid_laye{k}", Gate(c))  # sic: the published name
        for module in self.modules():  # batch norms and biases start as torch starts them
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.01)

    def restitute(self, features: Tensor, k: int) -> dict[str, Tensor]:
        """The SNR block after layer k: F, F~, gate, F~+ ("restituted") and F~- ("contaminated").

        "restituted" is what the next layer sees, in every variant.
        """
        if self.norm_restitution == "none":
            return {"features": features, "restituted": features}
        normalized = getattr(self, f"IN{k}")(features)
        if self.norm_restitution == "in":
            return {"features": features, "normalized": normalized, "restituted": normalized}
        residual = features - normalized
        gate = getattr(self, f"style_reid_laye{k}")(residual)
        return {
            "features": features,
            "normalized": normalized,
            "gate": gate,
            "restituted": normalized + gate * residual,
            "contaminated": normalized + (1 - gate) * residual,
        }

    def forward(self, images: Tensor, intermediates: bool = False) -> tuple:
        """Main and auxiliary logits [N, C, H, W]; then, if asked, the three dicts of restitute."""
        size = images.shape[2:]
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        blocks = []
        for k in (1, 2, 3):
            block = self.restitute(getattr(self, f"layer{k}")(x), k)
            blocks.append(block)
            x = block["restituted"]
        logits = self.layer6(self.layer4(x), size), self.layer5(x, size)
        return (*logits, blocks) if intermediates else logits


class Restitution(nn.Module):
    """The dual restitution loss; its 1x1 classifiers are no part of the exported network."""

    def __init__(self, num_classes: int = 19, width: int = 64):
        super().__init__()
        for k in (1, 2, 3):
            phi = nn.Conv2d(width * EXPANSION * 2 ** (k - 1), num_classes, 1)
            nn.init.normal_(phi.weight, 0.0, 0.01)
            setattr(self, f"restitution{k}", phi)

    def forward(self, blocks: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Sum over the blocks, unweighted."""
        return sum(
            restitution(
                getattr(self, f"restitution{k}"),
                block["restituted"],
                block["normalized"],
                block["contaminated"],
            )
            for k, block in enumerate(blocks, 1)
        )
