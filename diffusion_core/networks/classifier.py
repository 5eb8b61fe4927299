"""A small image classifier: the judge of labels, and the features in which generated
images are compared with real ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
