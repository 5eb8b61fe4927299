"""A small image classifier: the judge of labels, and the features in which generated
images are compared with real ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.data import Images, from_uint8


class Classifier(nn.Module):
    """Three convolutional stages, then a layer of 64 features, then one score a class.

    Shapes: x (B, channels, H, W) in [-1, 1], H and W at least 8; features(x) (B, 64),
        before their ReLU; forward(x) (B, classes).
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "width": width}
        stages, c = [], channels
        for out in (width, 2 * width, 4 * width):
            stages += [nn.Conv2d(c, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            stages += [
                nn.Conv2d(out, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            c = out
        self.stages = nn.Sequential(*stages)
        self.penultimate = nn.Linear(c, 64)
        self.head = nn.Linear(64, classes)

    def features(self, x: Tensor) -> Tensor:
        """The 64 numbers from which the scores are computed, before their ReLU."""
        return self.penultimate(self.stages(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.features(x)))


def train_classifier(
    data: Images,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    on_step: Callable | None = None,
) -> Classifier:
    """Cross-entropy with label smoothing 0.1, images shifted by up to two pixels, AdamW
    with a cosine learning rate.

    Shapes: data (N, C, H, W) uint8.
    Returns: the classifier in eval mode.
    """
    torch.manual_seed(seed)
    net = Classifier(data.pixels.shape[1], int(data.labels.max()) + 1).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    per_epoch = len(data.pixels) // batch_size
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(data.pixels), generator=generator)
        for i in range(per_epoch):
            index = order[i * batch_size : (i + 1) * batch_size]
            x = _shifted(from_uint8(data.pixels[index]), generator)
            for group in optimizer.param_groups:
                group["lr"] = (
                    lr
                    * 0.5
                    * (1 + math.cos(math.pi * (epoch * per_epoch + i) / (epochs * per_epoch)))
                )
            loss = F.cross_entropy(net(x), data.labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if on_step is not None:
                on_step(epoch * per_epoch + i + 1, loss.item())
    return net.eval()


def _shifted(x: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
    """The whole batch moved by one random offset, the border filled with the background
    -1."""
    dy, dx = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    padded = F.pad(x, (most, most, most, most), value=-1.0)
    return padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]


@torch.no_grad()
def classify(net: Classifier, x: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Predicted labels and features of many images.

    Shapes: x (N, C, H, W) in [-1, 1]; results (N,) int64 and (N, 64) float64, on the
        CPU.
    """
    labels, features = [], []
    device = next(net.parameters()).device
    for chunk in x.split(batch_size):
        f = net.features(chunk.to(device))
        features.append(f.double().cpu())
        labels.append(net.head(F.relu(f)).argmax(1).cpu())
    return torch.cat(labels), torch.cat(features)
