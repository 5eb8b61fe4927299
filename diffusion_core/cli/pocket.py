"""The recipe of the pocket Stable Diffusion, `train pocket`, and what is stored of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusion_core._validate import UsageError
from diffusion_core.cli.provenance import provenance
from diffusion_core.files import sha256, write_json
from diffusion_core.text_to_image import save_pipeline, train_pocket
from diffusion_core.text_to_image.autoencoder import AUTOENCODER
from diffusion_core.text_to_image.train import TEXT_TO_IMAGE
from diffusion_core.training import CHECKPOINT

NAME = "pocket"
ABOUT = "text to image in 32x32 pixels: autoencoder, text encoder, U-Net; an hour on two CPU cores"


def train_and_store(
    changes: dict[str, Any], device: str | None, resume: bool, runs: Path, out: Path, command: str
) -> None:
    """Train the pocket Stable Diffusion, or go on with it, and store it in OUT/pocket with its
    card OUT/pocket.json. Of the changes it takes the number of steps and the seed.

    Raises: UsageError; as train_pocket.
    """
    wanted = {name: value for name, value in changes.items() if value is not None}
    for name in wanted.keys() - {"steps", "seed"}:
        raise UsageError(f"train {NAME} takes no --{name.replace('_', '-')}")
    there = any(runs.glob(f"*/{CHECKPOINT}"))
    if there != resume:
        raise UsageError(
            f"{runs} holds a run; go on with --resume, or choose another --runs"
            if there
            else f"--resume: there is no run in {runs}; to start at step 0, leave --resume out"
        )
    card = out / f"{NAME}.json"
    if card.exists():
        raise UsageError(f"{card} is there already; choose another --out, or move it away")
    bars: dict[str, tqdm] = {}

    def on_step(part: str, step: int, loss: float | None) -> None:
        config = {"autoencoder": AUTOENCODER, "text_to_image": TEXT_TO_IMAGE}[part]
        total = wanted.get("steps", config.steps) if part == "text_to_image" else config.steps
        if part not in bars:
            bars[part] = tqdm(total=total, initial=step - 1, unit="step", desc=part)
        bars[part].update(step - bars[part].n)
        if loss is not None:
            bars[part].set_postfix(loss=f"{loss:.4f}", refresh=False)

    pipeline, about = train_pocket(
        runs,
        device=device or "cpu",
        text_to_image=dataclasses.replace(TEXT_TO_IMAGE, **wanted),
        on_step=on_step,
    )
    store(pipeline, about | provenance(command, device), out)
    print(f"pipeline and card: {out / NAME} and {card}")


def store(pipeline: Any, about: dict[str, Any], out: Path) -> None:
    """Write OUT/pocket, a folder of diffusers, and its card, with the hash of each weight file."""
    save_pipeline(pipeline, out / NAME)
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "unet")}
    about = {
        "name": NAME,
        "about": ABOUT,
        "parameters": {
            name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()
        },
        "stored_as": "float16",
        "sha256": {
            str(file.relative_to(out / NAME)): sha256(file)
            for file in sorted((out / NAME).rglob("*.safetensors"))
        },
        "licence": "MIT",
        "weights_are": "moving averages",
        **about,
    }
    write_json(out / f"{NAME}.json", about)
