"""The judge's training: a classifier of images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_core.data import Images, from_uint8
from diffusion_core.networks import Classifier


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
