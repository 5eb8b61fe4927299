"""The pocket Stable Diffusion: the classes of diffusers and transformers at a size that a
laptop trains. Building, training and loading it needs the extra `text-to-image`."""

from diffusion_core.text_to_image.adapters import (
    ADAPTER,
    TARGETS,
    adapter_tensors,
    add_adapter,
    load_adapter,
    remove_adapter,
    save_adapter,
)
from diffusion_core.text_to_image.autoencoder import (
    autoencoder_loss,
    balance_latents,
    load_autoencoder,
    train_autoencoder,
)
from diffusion_core.text_to_image.build import (
    POCKET,
    build_pipeline,
    load_pocket,
    save_pipeline,
    to_diffusers_vae,
)
from diffusion_core.text_to_image.fine_tune import (
    FINE_TUNE,
    encode_captions,
    fine_tune,
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
    encode_images,
    encode_text,
    train_text_to_image,
    training_scenes,
    v_loss,
)

__all__ = [
    "ADAPTER",
    "FINE_TUNE",
    "GUIDANCE_SCALE",
    "POCKET",
    "STABLE_DIFFUSION",
    "STEPS",
    "TARGETS",
    "SchedulerName",
    "adapter_tensors",
    "add_adapter",
    "autoencoder_loss",
    "balance_latents",
    "build_pipeline",
    "check_prompt",
    "encode_captions",
    "encode_images",
    "encode_text",
    "fine_tune",
    "held_out",
    "is_new",
    "load_adapter",
    "load_autoencoder",
    "load_pocket",
    "make_scheduler_like",
    "open_pipeline",
    "paint_prompts",
    "remove_adapter",
    "save_adapter",
    "save_pipeline",
    "scenes_of",
    "to_diffusers_vae",
    "train_autoencoder",
    "train_pocket",
    "train_text_to_image",
    "training_scenes",
    "v_loss",
]
