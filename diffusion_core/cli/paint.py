"""`python -m diffusion_core paint "a red star"`: pictures of what a sentence says."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from diffusion_core._validate import UsageError, check_device, check_whole
from diffusion_core.cli.options import add_command, check_file
from diffusion_core.cli.pictures import encoded, grid_of, kind_of
from diffusion_core.data import KINDS, PALETTE, RELATIONS
from diffusion_core.files import write_bytes
from diffusion_core.text_to_image.build import POCKET, need_diffusers
from diffusion_core.text_to_image.loading import open_pipeline
from diffusion_core.text_to_image.painting import (
    GUIDANCE_SCALE,
    SCHEDULERS,
    STEPS,
    SchedulerName,
    check_prompt,
    paint_prompts,
)

_HELP = f"""Paint what a prompt says with the pocket Stable Diffusion that ships with the package
(pip install "diffusion-core[text-to-image]"). It has seen scenes of one or two things:

  colours     {", ".join(PALETTE)}
  things      {", ".join(kind for kind in KINDS if kind != "cross")}
  sizes       small, large
  relations   {", ".join(RELATIONS)}

The empty prompt "" paints anything of that. Other words are refused: to the model they would be
letters that it never saw.

examples:
  python -m diffusion_core paint "a red star above a blue ring on a white background"
  python -m diffusion_core paint "a small green circle" --n 8 --seed 3 --out circles.png
  python -m diffusion_core paint "an astronaut riding a horse" --steps 50 --guidance-scale 7.5
      --model stable-diffusion-v1-5/stable-diffusion-v1-5       (needs a network and a GPU)
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add `paint` and its options to the command line."""
    parser = add_command(commands, paint, "paint what a prompt says", _HELP)
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help='such as "a red star above a blue ring"')
    add(
        "--out", type=Path, default=Path("picture.png"), metavar="FILE", help="default: picture.png"
    )
    add("--n", type=int, default=1, help="how many pictures, in rows of eight (default: 1)")
    add("--seed", type=int, default=0, help="of the first; the next has SEED + 1 (default: 0)")
    add("--steps", type=int, default=STEPS, help=f"at most 1000 (default: {STEPS})")
    add(
        "--guidance-scale",
        type=float,
        default=GUIDANCE_SCALE,
        metavar="SCALE",
        help="how strictly the prompt is followed; 1 or less: guidance is off, at half the cost "
        f"(default: {GUIDANCE_SCALE})",
    )
    add("--negative-prompt", default="", metavar="PROMPT", help="what to keep away from")
    add("--scheduler", choices=SCHEDULERS, default="ddim", help="default: ddim")
    add("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    add("--model", default=str(POCKET), help="a folder of diffusers, or a repository on the hub")


def paint(
    prompt: str,
    *,
    out: Path = Path("picture.png"),
    n: int = 1,
    seed: int = 0,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    negative_prompt: str = "",
    scheduler: SchedulerName = "ddim",
    device: str | None = None,
    model: str = str(POCKET),
) -> None:
    """Paint n pictures of a prompt and save them as one, in rows of at most eight.

    Raises: UsageError; OSError.
    """
    check_whole("--n", n, 1)
    check_whole("--steps", steps, 1)
    if not math.isfinite(guidance_scale):
        raise UsageError(f"--guidance-scale {guidance_scale} must be a finite number")
    if not 0 <= seed <= 2**63 - n:
        raise UsageError(f"--seed {seed} must be in 0..2**63 - {n}")
    if device is not None:
        check_device(device)
    check_file("--out", out)
    kind = kind_of(out, 3)
    need_diffusers()
    pipeline = open_pipeline(model, device=device)
    for text in (prompt, negative_prompt):
        check_prompt(pipeline, text)
    x = paint_prompts(
        pipeline,
        [prompt] * n,
        range(seed, seed + n),
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        negative_prompt=negative_prompt,
        batch=8,
    )
    columns = min(n, 8)
    rows = -(-n // columns)
    x = torch.cat([x, x.new_ones(rows * columns - n, *x.shape[1:])])  # the last row, filled up
    write_bytes(out, encoded(grid_of(x, columns, max(1, 128 // x.shape[-1])), kind))
    print(f"{n} {'picture' if n == 1 else 'pictures'}: {out}")
