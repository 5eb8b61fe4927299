"""Pictures of prompts from a pipeline: each from a seed of its own, with one of four
schedulers, after a look at the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from diffusion_core._validate import UsageError, check_choice, check_finite, check_whole
from diffusion_core.data import MOST_TOKENS, WORDS, unknown_words

if TYPE_CHECKING:
    import diffusers

STEPS = 25
GUIDANCE_SCALE = 3.0  # the best of benchmarks/pocket_table.py
SchedulerName = Literal["ddim", "ddpm", "dpm++", "euler"]
_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small"}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
}


def make_scheduler_like(pipeline: diffusers.DiffusionPipeline, name: SchedulerName) -> Any:
    """Another scheduler for a pipeline's network: the same betas, the same kind of prediction,
    the same grid of times, read from the configuration of the one that is there.

    Raises: UsageError for an unknown name.
    """
    check_choice("scheduler", name, SchedulerName)
    import diffusers

    kind, settings = _CLASSES[name]
    return getattr(diffusers, kind).from_config(pipeline.scheduler.config, **settings)


def check_prompt(pipeline: diffusers.DiffusionPipeline, prompt: str) -> None:
    """Raise UsageError for a prompt that a pipeline cannot read whole: one with more tokens than
    its text encoder takes, which would be cut off with a warning; and, of the pocket model, one
    with words that it does not know, which would fall apart into letters. The empty prompt is
    fine: it asks for nothing in particular."""
    tokenizer = pipeline.tokenizer
    most = tokenizer.model_max_length
    if most == MOST_TOKENS and (unknown := unknown_words(prompt)):
        raise UsageError(
            f"the pocket model does not know {_listed(unknown)}. It knows: "
            f"{' '.join(word for word in WORDS if word.isalpha())}"
        )
    count = len(tokenizer.tokenize(prompt)) + 2
    if count > most:
        raise UsageError(
            f"the prompt has {count} tokens, the marks of its beginning and end included, and "
            f"this text encoder reads {most}: leave out {count - most} words or more"
        )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(repr(word) for word in words)


def paint_prompts(
    pipeline: diffusers.DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    scheduler: SchedulerName = "ddim",
    negative_prompt: str = "",
    batch: int = 50,
) -> Tensor:
    """One picture for each prompt and its seed. A picture depends on its own prompt and seed,
    not on its batch: every one has a generator of its own.

    Shapes: result (N, 3, H, W) in [-1, 1], on the CPU.
    Raises: UsageError for an unknown scheduler, a number of steps out of range, or a scale that
        is not finite; ValueError if the numbers of prompts and seeds differ.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: expected one each")
    check_whole("steps", steps, 1)
    if steps > (most := pipeline.scheduler.config.num_train_timesteps):
        raise UsageError(f"steps = {steps} is more than the {most} of the whole chain")
    check_finite("guidance_scale", guidance_scale)
    before, parts = pipeline.scheduler, []
    pipeline.scheduler = make_scheduler_like(pipeline, scheduler)
    try:
        for i in range(0, len(prompts), batch):
            some = list(prompts[i : i + batch])
            output = pipeline(
                some,
                negative_prompt=[negative_prompt] * len(some),
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[i : i + batch]],
                output_type="pt",
            )
            parts.append(2 * output.images.float().cpu() - 1)
    finally:
        pipeline.scheduler = before
    return torch.cat(parts)


SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)
