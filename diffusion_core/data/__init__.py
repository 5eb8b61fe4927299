"""Images, as they are stored and as the models see them; drawn scenes with captions; folders of
captioned images."""

from diffusion_core.data.folders import (
    METADATA,
    Captioned,
    load_captioned_folder,
    save_captioned_folder,
)
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
    "METADATA",
    "MOST_TOKENS",
    "PALETTE",
    "RELATIONS",
    "SIZES",
    "WORDS",
    "Captioned",
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
    "load_captioned_folder",
    "load_images",
    "save_captioned_folder",
    "shapes",
    "signed_distance",
    "to_uint8",
    "unknown_words",
    "write_tokenizer",
]
