"""The moving average of the weights, from which one samples."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a net's weights, warmed up; buffers are copied.

    Equation: at update k = 0, 1, ...

            shadow <- d_k shadow + (1 - d_k) weights,  d_k = min(decay, (1 + k) / (10 + k))

        The random start's share after n updates is prod_k d_k; without the warm-up it
        would be decay^n, 0.905 after 1,000 updates at decay 0.9999.
    Raises: ValueError unless 0 <= decay < 1.
    """

    def __init__(self, net: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay} must be in [0, 1)")
        self.decay = decay
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    def decay_at(self, k: int) -> float:
        """The decay of update k."""
        return min(self.decay, (1 + k) / (10 + k))

    @torch.no_grad()
    def update(self, net: nn.Module, k: int) -> None:
        """Move the average towards the net, after step k."""
        shadow: list[Tensor] = list(self.net.parameters())
        weights: list[Tensor] = list(net.parameters())
        torch._foreach_lerp_(shadow, weights, 1 - self.decay_at(k))
        for ours, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
            ours.copy_(theirs)
