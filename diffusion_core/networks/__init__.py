"""Networks: the U-Net, an autoencoder, a classifier. They know nothing of schedules."""

from diffusion_core.networks.autoencoder import (
    AutoencoderKL,
    Posterior,
    latent_scale,
)
from diffusion_core.networks.classifier import (
    Classifier,
    classify,
)
from diffusion_core.networks.unet import (
    AttentionBlock,
    Level,
    ResidualBlock,
    UNet,
    Upsample,
    timestep_embedding,
)

__all__ = [
    "AttentionBlock",
    "AutoencoderKL",
    "Classifier",
    "Level",
    "Posterior",
    "ResidualBlock",
    "UNet",
    "Upsample",
    "classify",
    "latent_scale",
    "timestep_embedding",
]
