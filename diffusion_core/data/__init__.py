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
)

__all__ = [
    "KINDS",
    "PALETTE",
    "RELATIONS",
    "SIZES",
    "Images",
    "Name",
    "Scene",
    "Scenes",
    "Split",
    "Thing",
    "draw_scene",
    "from_uint8",
    "load_images",
    "shapes",
    "to_uint8",
]
