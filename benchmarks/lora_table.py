"""What LoRA teaches the pocket Stable Diffusion, and what it costs: rank, layers, scale, learning
rate, old images.

Each training: 100 pictures of large crosses, which the model never painted, and a share of every
batch from 3,000 pictures of what it paints already. Then each adapter, at one scale or several,
paints 200 prompts for crosses and 400 old ones, all adapters from the same noise; the judge of
evaluation/prompts.py reads the pictures. Written to diffusion_core/tables/lora.json. Every training
(with its checkpoints) and every 100 pictures are a part, kept in runs/lora_table, so that a stopped
run goes on.

    python -m benchmarks.lora_table
    … --seconds 100    (stops after so long; the table holds the rows that are whole)
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.painting import as_text, paint_scenes
from benchmarks.parts import RUNS, stop_at
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import Captioned, Scene, draw_scene, to_uint8
from diffusion_core.data.scenes import random_scene
from diffusion_core.evaluation.prompts import LEAST_IOU
from diffusion_core.files import read_safetensors, sha256, write_json, write_safetensors
from diffusion_core.pretrained import TABLES
from diffusion_core.text_to_image import (
    ADAPTER,
    FINE_TUNE,
    GUIDANCE_SCALE,
    POCKET,
    STEPS,
    adapter_tensors,
    fine_tune,
    load_adapter,
    load_pocket,
    save_adapter,
    scenes_of,
    training_scenes,
)
from diffusion_core.training import CHECKPOINT

FILE = TABLES / "lora.json"
PARTS = RUNS / "lora_table"
IMAGES, OLD_IMAGES = 100, 3_000
NEW, OLD, PART = 200, 400, 100  # prompts, and how many are painted together
TRAINED, OLD_TRAINED, ASKED, OLD_ASKED = 11, 12, 21, 22  # seeds of scenes
ALPHA = 2.0  # alpha / r
SHOWN = 8  # pictures
SCALES = (0.25, 0.5, 0.75, 0.9, 1.5)


@dataclasses.dataclass(frozen=True)
class Training:
    """What an adapter is trained with."""

    r: int = 6
    targets: str = "all"
    old_share: float = 0.6
    steps: int = 1_500
    lr: float = 3e-3
    seed: int = 0

    @property
    def name(self) -> str:
        return "_".join(str(value) for value in dataclasses.astuple(self))


USUAL = Training()
ROWS: list[tuple[Training | None, float]] = [  # an adapter and its scale; None: the base alone
    (None, 0.0),
    (USUAL, 1.0),
    (Training(old_share=0.3, steps=300, lr=5e-3), 1.0),
    (Training(r=8, targets="attention"), 1.0),
    (Training(old_share=0.0), 1.0),
    (Training(r=1), 1.0),
    *((USUAL, scale) for scale in SCALES),
]


def crosses(n: int, seed: int) -> list[Scene]:
    """The first n scenes of a seed that show one large cross, and nothing else."""
    every = (random_scene(seed, i) for i in count())
    found = (s for s in every if [(t.size, t.kind) for t in s.things] == [("large", "cross")])
    return list(islice(found, n))


def captioned(scenes: Sequence[Scene]) -> Captioned:
    """Scenes as images with captions."""
    pixels = torch.stack([draw_scene(scene) for scene in scenes])
    return Captioned(pixels, [scene.caption for scene in scenes])


def asked(what: str) -> list[Scene]:
    """The scenes that are asked for: what = "new" or "old"."""
    if what == "new":
        return crosses(NEW, ASKED)
    return list(islice(scenes_of(OLD_ASKED, held=None), OLD))


def train(training: Training, folder: Path) -> None:
    """Train an adapter, from the last checkpoint on if there is one, and write it."""
    pipeline = load_pocket()
    result = fine_tune(
        pipeline,
        captioned(crosses(IMAGES, TRAINED)),
        dataclasses.replace(
            FINE_TUNE,
            steps=training.steps,
            lr=training.lr,
            seed=training.seed,
            precision="fp32",
            checkpoint_every=50,
        ),
        r=training.r,
        alpha=ALPHA * training.r,
        targets=training.targets,
        old=captioned(training_scenes(OLD_IMAGES, OLD_TRAINED)),
        old_share=training.old_share,
        folder=folder / "run",
        resume=(folder / "run" / CHECKPOINT).exists(),
    )
    write_json(folder / "log.json", result.history)
    path = save_adapter(pipeline, folder)
    tensors, metadata = read_safetensors(path)
    halved = {name: tensor.half() for name, tensor in tensors.items()}  # as the base is stored
    write_safetensors(path, halved, metadata)


def paint(training: Training | None, scale: float, what: str, start: int, folder: Path) -> Any:
    """Paint and judge up to PART prompts: which are right, and the first pictures."""
    pipeline = load_pocket()
    if training is not None:
        load_adapter(pipeline, folder)
        pipeline.set_adapters("default", scale)
    scenes = asked(what)[start : start + PART]
    seeds = range(start, start + len(scenes))
    x, verdicts, seconds = paint_scenes(
        pipeline, scenes, seeds, steps=STEPS, guidance_scale=GUIDANCE_SCALE
    )
    return {
        "right": [int(verdict.right) for verdict in verdicts],
        "processor_seconds_an_image": seconds / len(scenes),
        "pixels": as_text(to_uint8(x[:SHOWN])),
    }


def parts(training: Training | None, scale: float) -> Iterator[tuple[str, int, Path]]:
    """("new" or "old", the first prompt, the file) of each part of a row."""
    folder = PARTS / (training.name if training else "base")
    for what, n in (("new", NEW), ("old", OLD)):
        for start in range(0, n, PART):
            yield what, start, folder / f"{scale}_{what}_{start}.json"


def work(training: Training | None, scale: float, stop: float) -> None:
    """Make the parts of a row that are not there, unless it is too late."""
    for what, start, path in parts(training, scale):
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True)
        if training is not None and not (folder / ADAPTER).exists() and time.time() < stop:
            train(training, folder)
            print("trained", training.name, flush=True)
        if not path.exists() and time.time() < stop:
            write_json(path, paint(training, scale, what, start, folder))
            print(path.relative_to(PARTS), flush=True)


def entry(training: Training | None, scale: float) -> dict[str, Any] | None:
    """The row of the table, once all its parts are there; `right` holds a 1 for each picture
    that shows what its prompt says."""
    pieces = list(parts(training, scale))
    if not all(path.exists() for _, _, path in pieces):
        return None
    found = [(what, json.loads(path.read_text())) for what, _, path in pieces]
    row: dict[str, Any] = {"training": None, "scale": scale}
    if training is not None:
        folder = PARTS / training.name
        pipeline = load_pocket()
        load_adapter(pipeline, folder)
        log = json.loads((folder / "log.json").read_text())
        row |= {
            "training": dataclasses.asdict(training),
            "parameters": sum(p.numel() for p in adapter_tensors(pipeline).values()),
            "bytes": (folder / ADAPTER).stat().st_size,
            "seconds": log[-1]["seconds"],
        }
    for what in ("new", "old"):
        row[what] = "".join(str(hit) for name, one in found if name == what for hit in one["right"])
    if training in (None, USUAL):
        row["pixels"] = found[0][1]["pixels"]
    return row


def main(argv: list[str] | None = None) -> None:
    stop = stop_at("lora_table", argv)
    for row in ROWS:
        work(*row, stop)
    rows = [found for row in ROWS if (found := entry(*row))]
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.lora_table", "cpu"),
            "weights_sha256": sha256(POCKET / "unet" / "diffusion_pytorch_model.safetensors"),
            "images": IMAGES,
            "old_images": OLD_IMAGES,
            "batch_size": FINE_TUNE.batch_size,
            "alpha_over_r": ALPHA,
            "sampler": f"DDIM, {STEPS} steps, guidance {GUIDANCE_SCALE}",
            "least_iou": LEAST_IOU,
            "rows": rows,
        },
    )
    print(f"{len(ROWS) - len(rows)} rows are open")


if __name__ == "__main__":
    main(sys.argv[1:])
