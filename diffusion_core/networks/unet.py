"""One U-Net for every chapter: 8x8 digits, 28x28 MNIST, 32x32 colour, latents. It knows
nothing of noise schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Times as sines and cosines of many frequencies, so that a linear layer can tell
    any two of them apart.

    Equation: Vaswani et al. 2017 sec. 3.5, cos(t w_i) and sin(t w_i) with

            w_i = max_period^(-i / (dim/2)),  i = 0 .. dim/2 - 1
    Shapes: t (B,), whole or real, in steps; result (B, dim): cosines first, then sines.
    Returns: float32, on t's device.
    Raises: ValueError if dim is odd or t is not one-dimensional; TypeError for
        half-precision times (bfloat16 rounds 997 to 996).
    """
    if dim % 2 or t.ndim != 1:
        raise ValueError(
            f"timestep_embedding needs an even dim and t of shape (B,), got dim = {dim}, t "
            f"{tuple(t.shape)}"
        )
    if t.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"t has dtype {t.dtype}, which cannot hold every time step; use int64, float32 or "
            "float64"
        )
    i = torch.arange(dim // 2, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * i / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], 1)


def _zero(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters set to 0: its branch starts as if it were not
    there."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _groups(channels: int) -> int:
    """Groups for GroupNorm: 8 channels or more in each, at most 32 groups."""
    return math.gcd(channels, min(32, max(1, channels // 8)))


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip; the embedding of (t, y) scales and shifts what
    lies between them.

    Equation: Ho et al. 2020 app. B, with the scale-and-shift of Nichol & Dhariwal 2021
        app. A (adaptive group normalization); conv2 is zero at the start:

            h = conv1(silu(norm1(x)))
            skip(x) + conv2(silu((1 + scale) norm2(h) + shift))
    Shapes: x (B, in_channels, H, W), emb (B, emb_dim) -> (B, out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_groups(in_channels), in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(_groups(out_channels), out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class AttentionBlock(nn.Module):
    """Self-attention between all pixels, beside a skip; the output projection is zero
    at the start.

    Equation: Vaswani et al. 2017 eq. 1, softmax(q k^T / sqrt(d)) v, over the H W
        pixels. Keys carry no bias: it would cancel in the softmax.
    Shapes: (B, channels, H, W) -> the same.
    Raises: ValueError if head_dim does not divide channels.
    """

    def __init__(self, channels: int, head_dim: int = 32) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"head_dim = {head_dim} must divide channels = {channels}")
        self.heads = channels // head_dim
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.to_qv = nn.Linear(channels, 2 * channels)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.out = _zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, v = self.to_qv(pixels).chunk(2, dim=2)
        q, k, v = (
            a.reshape(B, H * W, self.heads, -1).transpose(1, 2) for a in (q, self.to_k(pixels), v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        return x + self.out(mixed).transpose(1, 2).reshape(B, C, H, W)


class Level(nn.Module):
    """A residual block, followed by attention where the resolution asks for it."""

    def __init__(
        self, in_channels: int, out_channels: int, emb_dim: int, attention: bool, dropout: float
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, emb_dim, dropout)
        self.attention = (
            AttentionBlock(out_channels, min(32, out_channels)) if attention else nn.Identity()
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.block(x, emb))


class Upsample(nn.Module):
    """Twice the size: each pixel repeated, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _down_path(
    width: int, levels: list[tuple[int, bool]], blocks: int, emb_dim: int, dropout: float
) -> tuple[nn.ModuleList, list[int]]:
    """The way down, from `width` channels, and the channels of every skip that it
    leaves; levels: (channels, attention) of each, the finest first."""
    modules, skips = nn.ModuleList(), [width]
    for i, (channels, attention) in enumerate(levels):
        for _ in range(blocks):
            modules.append(Level(skips[-1], channels, emb_dim, attention, dropout))
            skips.append(channels)
        if i < len(levels) - 1:
            modules.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            skips.append(channels)
    return modules, skips


def _up_path(
    levels: list[tuple[int, bool]], skips: list[int], blocks: int, emb_dim: int, dropout: float
) -> nn.ModuleList:
    """The way up, which takes every skip once, the last one first."""
    modules, c, skips = nn.ModuleList(), levels[-1][0], skips.copy()
    for i, (channels, attention) in reversed(list(enumerate(levels))):
        for _ in range(blocks + 1):
            modules.append(Level(c + skips.pop(), channels, emb_dim, attention, dropout))
            c = channels
        if i > 0:
            modules.append(Upsample(c))
    assert not skips, "every skip must be used once"
    return modules


class UNet(nn.Module):
    """Predicts the noise in x_t. With y = None (the null label for every image) it is
    an EpsModel.

    Equation: eps_theta(x_t, t, y); Ho et al. 2020 app. B, after Ronneberger et al.
        2015. Its output is 0 before training: the loss of DDPM eq. 14 starts at 1.
    Shapes: x (B, channels, H, W), H and W divisible by 2^(levels - 1), with
        levels = len(multipliers); t () or (B,), in steps, on any device; y (B,) int64
        in 0..classes, where index `classes` is the null label.
    Returns: (B, channels, H, W), dtype of x.
    Raises: ValueError if the sizes, the shape of t or the labels do not fit, or labels
        are given to a net without classes; TypeError for half-precision t.
    """

    config: dict[str, Any]

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        attention: Sequence[bool] = (False, False, True),
        classes: int | None = None,
        dropout: float = 0.0,
        emb_dim: int = 128,
    ) -> None:
        super().__init__()
        if len(attention) != len(multipliers) or not multipliers:
            raise ValueError(
                f"attention {tuple(attention)} must have one entry for each level of multipliers "
                f"{tuple(multipliers)}"
            )
        if classes is not None and classes < 1:
            raise ValueError(
                f"classes = {classes} must be at least 1, or None for a net without labels"
            )
        self.config = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "classes": classes,
            "dropout": dropout,
            "emb_dim": emb_dim,
        }
        self.channels, self.classes, self.emb_dim = channels, classes, emb_dim
        self.time_mlp = nn.Sequential(
            nn.Linear(emb_dim, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim)
        )
        self.label_embedding = None if classes is None else nn.Embedding(classes + 1, emb_dim)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)

        levels = [(width * m, has) for m, has in zip(multipliers, attention, strict=True)]
        c = levels[-1][0]
        self.down, skips = _down_path(width, levels, blocks, emb_dim, dropout)
        self.middle = nn.ModuleList(
            [Level(c, c, emb_dim, attention[-1], dropout), Level(c, c, emb_dim, False, dropout)]
        )
        self.up = _up_path(levels, skips, blocks, emb_dim, dropout)
        c = levels[0][0]
        self.norm_out = nn.GroupNorm(_groups(c), c)
        self.conv_out = _zero(nn.Conv2d(c, channels, 3, padding=1))

    @property
    def null_label(self) -> int:
        """The label that says "no label": one past the last class.

        Raises: ValueError for a net without classes.
        """
        if self.classes is None:
            raise ValueError(
                "this U-Net was built without classes, so it has no null label; build it with "
                "classes=K"
            )
        return self.classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self._check_size(x)
        emb = self._embed(x, t, y)
        h = self.conv_in(x)
        skips = [h]
        for module in self.down:
            h = module(h, emb) if isinstance(module, Level) else module(h)
            skips.append(h)
        for module in self.middle:
            h = module(h, emb)
        for module in self.up:
            if isinstance(module, Upsample):
                h = module(h)
            else:
                skip = skips.pop()
                assert skip.shape[2:] == h.shape[2:], (
                    f"skip {tuple(skip.shape)} meets {tuple(h.shape)}"
                )
                h = module(torch.cat([h, skip], 1), emb)
        assert not skips, "every skip must be used once"
        return self.conv_out(F.silu(self.norm_out(h))).to(x.dtype)

    def _check_size(self, x: Tensor) -> None:
        divisor = 2 ** (len(self.config["multipliers"]) - 1)
        if (
            x.ndim != 4
            or x.shape[1] != self.channels
            or x.shape[2] % divisor
            or x.shape[3] % divisor
        ):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this U-Net takes (B, {self.channels}, H, W) with "
                f"H and W divisible by {divisor} "
                f"(it has {len(self.config['multipliers'])} levels, each half the size of the "
                "one above)"
            )

    def _embed(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The embedding of (t, y) that every residual block receives, (B, emb_dim)."""
        B = x.shape[0]
        t = torch.as_tensor(t)
        if t.shape not in ((), (B,)):
            raise ValueError(f"t has shape {tuple(t.shape)}, expected () or ({B},)")
        waves = timestep_embedding(t.expand(B), self.emb_dim)
        emb = self.time_mlp(waves.to(self.conv_in.weight))
        if self.label_embedding is None:
            if y is not None:
                raise ValueError(
                    "labels were given, but this U-Net was built without classes; build it with "
                    "classes=K"
                )
            return emb
        if y is None:
            y = torch.full((B,), self.null_label, device=x.device)
        if y.shape != (B,) or y.dtype != torch.int64:
            raise ValueError(
                f"y has shape {tuple(y.shape)} and dtype {y.dtype}, expected ({B},) and int64"
            )
        readable = y.device.type == "cpu" and not torch.compiler.is_compiling()  # else: a wait
        if readable and not bool(((y >= 0) & (y <= self.null_label)).all()):
            wrong = y[(y < 0) | (y > self.null_label)][0].item()
            raise ValueError(
                f"label {wrong} is out of range: 0..{self.null_label - 1}, or {self.null_label} "
                "for the null label"
            )
        return emb + self.label_embedding(y.to(x.device))
