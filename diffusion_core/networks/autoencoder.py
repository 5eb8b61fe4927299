"""The autoencoder of latent diffusion: images to a few numbers a patch, and back. Its parts
have the names of diffusers' `AutoencoderKL`, so that one file of weights serves both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Posterior(NamedTuple):
    """q(z | x): a normal distribution with a mean and a log-variance for each number of
    the latent. Shapes: (B, c, h, w) both."""

    mean: Tensor
    log_var: Tensor

    def draw(self, z: Tensor) -> Tensor:
        """A sample, from a draw of N(0, I) of the mean's shape.

        Equation: Kingma & Welling 2014 sec. 2.4, mean + std z with std = exp(log_var / 2).
        """
        return self.mean + torch.exp(0.5 * self.log_var) * z

    def kl(self) -> Tensor:
        """The divergence from N(0, I), in nats, summed over the latent.

        Equation: Kingma & Welling 2014 app. B,

                KL = 1/2 sum (mean^2 + var - 1 - log var)
        Shapes: result (B,).
        """
        terms = self.mean.square() + self.log_var.exp() - 1 - self.log_var
        return 0.5 * terms.flatten(1).sum(1)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); a 1x1 convolution on x where the number of
    channels changes."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Halve(nn.Module):
    """Half the height and width: a convolution of stride 2, padded on the right and below."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Twice the height and width: each pixel four times, then a convolution."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """Residual blocks at one resolution, then perhaps a change of resolution."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, then: str = "") -> None:
        super().__init__()
        channels = [c_in, *[c_out] * blocks]
        self.resnets = nn.ModuleList(Residual(a, b, groups) for a, b in pairwise(channels))
        if then:
            change = {"downsamplers": Halve, "upsamplers": Double}[then]
            self.add_module(then, nn.ModuleList([change(c_out)]))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            for layer in part:  # type: ignore[attr-defined]
                x = layer(x)
        return x


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, 2 c, h, w): the posterior's mean and log-variance."""

    def __init__(
        self, channels: Sequence[int], blocks: int, groups: int, image: int, latent: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(image, channels[0], 3, padding=1)
        ins = [channels[0], *channels[:-1]]
        then = ["downsamplers"] * (len(channels) - 1) + [""]
        self.down_blocks = nn.ModuleList(
            Stage(a, b, blocks, groups, change)
            for a, b, change in zip(ins, channels, then, strict=True)
        )
        self.mid_block = Stage(channels[-1], channels[-1], 2, groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down_blocks:
            h = stage(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """(B, c, h, w) -> (B, 3, H, W): the encoder's mirror, with one block more a stage."""

    def __init__(
        self, channels: Sequence[int], blocks: int, groups: int, image: int, latent: int
    ) -> None:
        super().__init__()
        outs = list(channels[::-1])
        self.conv_in = nn.Conv2d(latent, outs[0], 3, padding=1)
        self.mid_block = Stage(outs[0], outs[0], 2, groups)
        then = ["upsamplers"] * (len(outs) - 1) + [""]
        self.up_blocks = nn.ModuleList(
            Stage(a, b, blocks + 1, groups, change)
            for a, b, change in zip([outs[0], *outs[:-1]], outs, then, strict=True)
        )
        self.conv_norm_out = nn.GroupNorm(groups, outs[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(outs[-1], image, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            h = stage(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class AutoencoderKL(nn.Module):
    """A variational autoencoder: every change of resolution halves the image, and a latent
    has `latent` numbers a place. Rombach et al. 2022, section 3.1, the KL variant; without
    the attention of its middle block.

    Shapes: images (B, 3, H, W) in [-1, 1], H and W multiples of `factor`; latents
        (B, latent, H / factor, W / factor).
    Raises: ValueError unless every number of channels is a multiple of `groups`.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64),
        blocks: int = 1,
        groups: int = 16,
        image: int = 3,
        latent: int = 4,
    ) -> None:
        super().__init__()
        if any(c % groups for c in channels):
            raise ValueError(f"channels = {tuple(channels)} must be multiples of groups = {groups}")
        self.config = {
            "channels": list(channels),
            "blocks": blocks,
            "groups": groups,
            "image": image,
            "latent": latent,
        }
        self.factor = 2 ** (len(channels) - 1)
        self.encoder = Encoder(channels, blocks, groups, image, latent)
        self.decoder = Decoder(channels, blocks, groups, image, latent)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def encode(self, x: Tensor) -> Posterior:
        """The posterior of the latents, its log-variance kept in [-30, 20].

        Raises: ValueError unless the height and the width are multiples of `factor`.
        """
        if any(side % self.factor for side in x.shape[-2:]):
            raise ValueError(
                f"images of {x.shape[-2]} x {x.shape[-1]} pixels: both must be multiples of "
                f"{self.factor}; cut or resize them"
            )
        mean, log_var = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return Posterior(mean, log_var.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent, not clipped."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Posterior]:
        """The reconstruction through a sampled latent, and the posterior; z ~ N(0, I)."""
        posterior = self.encode(x)
        return self.decode(posterior.draw(z)), posterior


@torch.no_grad()
def latent_scale(autoencoder: AutoencoderKL, x: Tensor, batch_size: int = 250) -> float:
    """The factor that gives latents a standard deviation of 1, over all their numbers
    together: what diffusers calls `scaling_factor`.

    Equation: Rombach et al. 2022 app. G: z <- z / sigma-hat, with sigma-hat^2 the mean
        of (z - mean)^2 over images, channels and places.
    Shapes: x (N, 3, H, W) in [-1, 1].
    """
    means = torch.cat([autoencoder.encode(part).mean for part in x.split(batch_size)])
    return 1 / means.double().std(correction=0).item()
