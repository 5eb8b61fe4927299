"""Images, as they are stored and as the models see them, and drawn scenes with captions."""

from diffusion_core.data.images import (
    SIZES,
    Images,
    Name,
    Split,
    from_uint8,
    load_images,
    to_uint8,
)
from diffusion_core.data.scenes import (
    KINDS,
    PALETTE,
    RELATIONS,
    Scene,
    Scenes,
    Thing,
    draw_scene,
    shapes,
    signed_distance,
)
from diffusion_core.data.words import (
    MOST_TOKENS,
    WORDS,
    count_tokens,
    describe,
    unknown_words,
    write_tokenizer,
)

__all__ = [
    "KINDS",
    "MOST_TOKENS",
    "PALETTE",
    "RELATIONS",
    "SIZES",
    "WORDS",
    "Images",
    "Name",
    "Scene",
    "Scenes",
    "Split",
    "Thing",
    "count_tokens",
    "describe",
    "draw_scene",
    "from_uint8",
    "load_images",
    "shapes",
    "signed_distance",
    "to_uint8",
    "unknown_words",
    "write_tokenizer",
]
