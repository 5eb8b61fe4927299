"""What ships with the package: weights with their cards, tables, and images from the weights."""

from diffusion_core.pretrained.cards import (
    WEIGHTS,
    place_of,
    read_card,
    save_net,
)
from diffusion_core.pretrained.generation import (
    Sampler,
    check_sampling,
    generate,
)
from diffusion_core.pretrained.loading import (
    TABLES,
    Pretrained,
    load_net,
    load_pretrained,
    load_table,
)

__all__ = [
    "TABLES",
    "WEIGHTS",
    "Pretrained",
    "Sampler",
    "check_sampling",
    "generate",
    "load_net",
    "load_pretrained",
    "load_table",
    "place_of",
    "read_card",
    "save_net",
]
