"""How good, how varied and how new are generated images, and do they show what was asked for?"""

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
    moments_at_shares,
    nearest_neighbours,
)
from diffusion_core.evaluation.prompts import (
    Seen,
    Share,
    Verdict,
    judge_scene,
    prompt_accuracy,
    read_scene,
)
from diffusion_core.evaluation.samples import (
    Setting,
    evaluate_seed,
    summary,
)

__all__ = [
    "Estimate",
    "Moments",
    "Seen",
    "Setting",
    "Share",
    "Verdict",
    "agreement",
    "estimate",
    "evaluate_seed",
    "frechet_distance",
    "judge_scene",
    "kernel_distance",
    "load_classifier",
    "moments",
    "moments_at_shares",
    "nearest_neighbours",
    "prompt_accuracy",
    "read_scene",
    "save_moments",
    "summary",
]
