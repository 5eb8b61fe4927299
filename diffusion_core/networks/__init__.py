"""Networks: the U-Net, an autoencoder, a classifier, and LoRA. They know nothing of schedules."""

from diffusion_core.networks.autoencoder import (
    AutoencoderKL,
    Posterior,
    latent_scale,
)
from diffusion_core.networks.classifier import (
    Classifier,
    classify,
)
from diffusion_core.networks.lora import (
    LoRAConv2d,
    LoRALinear,
    inject,
    lora_state_dict,
    merge,
    unload,
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
    "LoRAConv2d",
    "LoRALinear",
    "Posterior",
    "ResidualBlock",
    "UNet",
    "Upsample",
    "classify",
    "inject",
    "latent_scale",
    "lora_state_dict",
    "merge",
    "timestep_embedding",
    "unload",
]
