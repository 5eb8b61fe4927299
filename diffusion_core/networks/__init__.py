"""Networks: the U-Net and a classifier. They know nothing of schedules."""

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
    "Classifier",
    "Level",
    "ResidualBlock",
    "UNet",
    "Upsample",
    "classify",
    "timestep_embedding",
]
