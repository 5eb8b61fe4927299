"""The pocket Stable Diffusion: the classes of diffusers and transformers at a size that a
laptop trains. Building, training and loading it needs the extra `text-to-image`."""

from diffusion_core.text_to_image.autoencoder import (
    autoencoder_loss,
    balance_latents,
    train_autoencoder,
)
from diffusion_core.text_to_image.build import (
    POCKET,
    build_pipeline,
    load_pocket,
    save_pipeline,
    to_diffusers_vae,
)
from diffusion_core.text_to_image.loading import (
    STABLE_DIFFUSION,
    open_pipeline,
)
from diffusion_core.text_to_image.painting import (
    GUIDANCE_SCALE,
    STEPS,
    SchedulerName,
    check_prompt,
    make_scheduler_like,
    paint_prompts,
)
from diffusion_core.text_to_image.recipe import (
    train_pocket,
)
from diffusion_core.text_to_image.scenes import (
    held_out,
    is_new,
    scenes_of,
)
from diffusion_core.text_to_image.train import (
    encode_text,
    train_text_to_image,
    training_scenes,
    v_loss,
)

__all__ = [
    "GUIDANCE_SCALE",
    "POCKET",
    "STABLE_DIFFUSION",
    "STEPS",
    "SchedulerName",
    "autoencoder_loss",
    "balance_latents",
    "build_pipeline",
    "check_prompt",
    "encode_text",
    "held_out",
    "is_new",
    "load_pocket",
    "make_scheduler_like",
    "open_pipeline",
    "paint_prompts",
    "save_pipeline",
    "scenes_of",
    "to_diffusers_vae",
    "train_autoencoder",
    "train_pocket",
    "train_text_to_image",
    "training_scenes",
    "v_loss",
]
