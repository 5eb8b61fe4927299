"""How good, how varied and how new are generated images?"""

from diffusion_core.evaluation.judge import (
    load_classifier,
    save_moments,
)
from diffusion_core.evaluation.metrics import (
    Estimate,
    Moments,
    agreement,
    estimate,
    frechet_distance,
    kernel_distance,
    moments,
    nearest_neighbours,
)
from diffusion_core.evaluation.samples import (
    Setting,
    evaluate_seed,
    summary,
)

__all__ = [
    "Estimate",
    "Moments",
    "Setting",
    "agreement",
    "estimate",
    "evaluate_seed",
    "frechet_distance",
    "kernel_distance",
    "load_classifier",
    "moments",
    "nearest_neighbours",
    "save_moments",
    "summary",
]
