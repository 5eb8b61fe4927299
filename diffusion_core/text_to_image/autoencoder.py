"""The pocket Stable Diffusion's autoencoder: how it is trained, and the one that ships."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffusion_core._validate import UsageError
from diffusion_core.data import from_uint8
from diffusion_core.files import read_safetensors
from diffusion_core.networks import AutoencoderKL, Posterior
from diffusion_core.pretrained import WEIGHTS
from diffusion_core.training import TrainConfig, TrainResult, fit, generator_of_step

VAE = WEIGHTS / "pocket" / "vae"  # in diffusers' format
KL_WEIGHT = 2e-4
AUTOENCODER = TrainConfig(
    steps=3_200, batch_size=48, lr=2e-3, ema_decay=0.995, log_every=50, checkpoint_every=500
)


def autoencoder_loss(
    x: Tensor,
    x_hat: Tensor,
    posterior: Posterior,
    kl_weight: float,
) -> Tensor:
    """What an autoencoder minimises: absolute and squared errors of pixels, absolute
    errors of the differences between neighbours (edges), and the weighted divergence
    of its latents from N(0, I), per pixel.

    Equation: the KL variant of Rombach et al. 2022, section 3.1, with plain errors in
        the place of its perceptual and adversarial losses,

            |x - x'| + (x - x')^2 + 1/2 |grad (x - x')| + kl_weight KL / (H W)
    Shapes: x, x_hat (B, 3, H, W); result (), the mean.
    """
    error = x_hat.float() - x
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = posterior.kl().mean() / x[0, 0].numel()
    return error.abs().mean() + error.square().mean() + 0.5 * edges + kl_weight * kl


def train_autoencoder(
    net: AutoencoderKL,
    pixels: Tensor,
    config: TrainConfig = AUTOENCODER,
    *,
    kl_weight: float = KL_WEIGHT,
    folder: str | Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, float | None], None] | None = None,
) -> TrainResult:
    """Train an autoencoder on images with autoencoder_loss; the moving average is the one
    to use.

    Shapes: pixels (N, 3, H, W) uint8.
    Raises: as fit.
    """
    device = next(net.parameters()).device
    pixels = pixels.to(device)

    def loss_of_step(k: int) -> Tensor:
        generator = generator_of_step(config.seed, k)
        index = torch.randint(0, len(pixels), (config.batch_size,), generator=generator)
        x = from_uint8(pixels[index.to(device)])
        posterior = net.encode(x)
        posterior = Posterior(posterior.mean.float(), posterior.log_var.float())
        z = torch.randn(posterior.mean.shape, generator=generator).to(device)
        x_hat = net.decode(posterior.draw(z))
        return autoencoder_loss(x, x_hat, posterior, kl_weight)

    settings = {"autoencoder": net.config, "kl_weight": kl_weight, "images": len(pixels)}
    return fit(
        net,
        loss_of_step,
        config,
        settings=settings,
        folder=folder,
        resume=resume,
        on_step=on_step,
    )


@torch.no_grad()
def balance_latents(net: AutoencoderKL, x: Tensor) -> None:
    """Give every channel of the latents mean 0 and the same variance, without a change of
    what is reconstructed: an affine map a channel, folded into the 1x1 convolution after the
    encoder, and its inverse into the one before the decoder. One latent_scale then fits all.

    Shapes: x (N, 3, H, W) in [-1, 1], the images over which moments are taken.
    """
    latents = net.encode(x).mean
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    factor = std.square().mean().sqrt() / std
    c = len(mean)
    weight, bias = net.quant_conv.parameters()
    bias[:c] = (bias[:c] - mean) * factor
    weight[:c] *= factor[:, None, None, None]
    bias[c:] += 2 * factor.log()  # the variance is scaled too
    weight, bias = net.post_quant_conv.parameters()
    bias.add_(weight[:, :, 0, 0] @ mean)
    weight.div_(factor[None, :, None, None])


def load_autoencoder(folder: str | Path = VAE) -> tuple[AutoencoderKL, float]:
    """A trained autoencoder from a folder in the format of diffusers, the shipped one unless
    another is given, and its latent scale: latents times this have a standard deviation of 1.

    Returns: (autoencoder, scale), the autoencoder in eval mode, float32.
    Raises: FileNotFoundError if the folder lacks a file; UsageError if it holds another kind of
        autoencoder.
    """
    folder = Path(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    for file in (folder / "config.json", weights):
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: {folder} holds no autoencoder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors, _ = read_safetensors(weights)
    try:
        net = AutoencoderKL(
            channels=config["block_out_channels"],
            blocks=config["layers_per_block"],
            groups=config["norm_num_groups"],
            image=config["in_channels"],
            latent=config["latent_channels"],
        )
        net.load_state_dict({k: v.float() for k, v in tensors.items()})
        scale = float(config["scaling_factor"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{folder} describes no autoencoder of this book: {error!r}") from error
    return net.eval().requires_grad_(False), scale
