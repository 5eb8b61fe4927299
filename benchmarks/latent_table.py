"""Diffusion in latents against diffusion in pixels, on captioned scenes, at equal budgets.

Two U-Nets of about the same number of parameters learn `shapes` without labels: one sees 32 x 32
pixels, one the 8 x 8 latents of the shipped autoencoder. A budget is a number of multiply-adds of
training (a step counts three times its forward pass; encoding the images counts too), the same for
both; one more run in pixels gets four times as much. Beside them latents with another standard
deviation, for what a wrong scale does, and real scenes, straight and through the autoencoder.

The distance is the squared Fréchet distance between the means and standard deviations of all 4 x 4
patches (384 numbers an image): no network that a rival could have been trained on. Written to
diffusion_core/tables/latent_shapes.json; nets and samples are kept in runs/latent_table, so that a
stopped run goes on.

    python -m benchmarks.latent_table
    … --seconds 150    (stops after so long; the table holds the rows that are whole)
"""

import base64
import dataclasses
import functools
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.painting import in_bf16
from benchmarks.parts import RUNS, stop_at
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import PALETTE, from_uint8, shapes, to_uint8
from diffusion_core.ddim import ddim_sample
from diffusion_core.ddpm import simple_loss
from diffusion_core.evaluation import Moments, frechet_distance, moments
from diffusion_core.files import read_safetensors, sha256, write_json, write_safetensors
from diffusion_core.networks import UNet
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import TABLES
from diffusion_core.sampling import last
from diffusion_core.schedules import NoiseSchedule, linear_betas, timesteps
from diffusion_core.text_to_image.autoencoder import AUTOENCODER, VAE, load_autoencoder
from diffusion_core.training import (
    CHECKPOINT,
    TrainConfig,
    fit,
    generator_of_step,
    resolve_precision,
)

FILE = TABLES / "latent_shapes.json"
PARTS = RUNS / "latent_table"
NETS: dict[str, dict[str, Any]] = {
    "pixels": {
        "channels": 3,
        "width": 32,
        "multipliers": [1, 2, 4],
        "attention": [False, False, True],
    },
    "latents": {"channels": 4, "width": 64, "multipliers": [1, 2], "attention": [False, True]},
}
SIDE = {"pixels": 32, "latents": 8}
BUDGET = 4e12  # multiply-adds of training
BATCH, S, N, SHOWN, CHUNK = 32, 25, 400, 8, 100
TRAIN, REAL, FLOOR = (10_000, 1), (10_000, 2), 3  # scenes and seed; the floor's seeds from here on
SEEDS, RATE = (0, 1, 2), 1e-3
STDS = (5.49, 0.18)  # Stable Diffusion's latents without their scale; with it, twice


@dataclasses.dataclass(frozen=True)
class Net:
    """One training run. `std`: the standard deviation of the latents that it sees."""

    space: str
    seed: int
    times: int = 1  # of the budget
    std: float = 1.0

    @property
    def folder(self) -> Path:
        return PARTS / "_".join(f"{value}" for value in dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Row:
    """One set of samples. `clip`: predicted x_0 kept in [-1, 1] ("box", for pixels), within the
    largest number of the training data ("own"), or not at all ("none")."""

    net: Net
    clip: str

    @property
    def file(self) -> Path:
        return self.net.folder / f"samples_{self.clip}.safetensors"


class TooLate(Exception):
    """Time is up; what was done is stored."""


def multiply_adds(f: Callable[[], Any]) -> float:
    """Of one call: half of what PyTorch counts as floating-point operations."""
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops() / 2


@functools.cache
def counts() -> dict[str, float]:
    """Multiply-adds for one image: of one call of each net, of the encoder, of the decoder."""
    autoencoder, x = load_autoencoder()[0], torch.zeros(1, 3, 32, 32)
    found = {
        space: multiply_adds(
            lambda space=space: UNet(**NETS[space])(noise(space, 1, 0), torch.tensor([1]))
        )
        for space in NETS
    }
    found["encode"] = multiply_adds(lambda: autoencoder.encode(x))
    found["decode"] = multiply_adds(lambda: autoencoder.decode(torch.zeros(1, 4, 8, 8)))
    return found


def budget(net: Net) -> float:
    """Multiply-adds of this run, without encoding."""
    encoding = TRAIN[0] * counts()["encode"] if net.space == "latents" else 0
    return net.times * BUDGET - encoding


def config(net: Net) -> TrainConfig:
    steps = round(budget(net) / (3 * BATCH * counts()[net.space]))
    return TrainConfig(
        steps=steps,
        batch_size=BATCH,
        lr=RATE,
        warmup=50,
        ema_decay=0.99,
        seed=net.seed,
        checkpoint_every=100,
    )


def noise(space: str, n: int, seed: int) -> Tensor:
    """Starts of n samples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, NETS[space]["channels"], SIDE[space], SIDE[space], generator=generator)


@functools.cache
def data(space: str) -> Tensor:
    """What a net learns: pixels as uint8, or latents of standard deviation 1."""
    pixels = shapes(*TRAIN).pixels
    if space == "pixels":
        return pixels
    autoencoder, scale = load_autoencoder()
    with torch.no_grad():
        parts = [autoencoder.encode(from_uint8(part)).mean for part in pixels.split(CHUNK)]
    return scale * torch.cat(parts)


def schedule() -> NoiseSchedule:
    return NoiseSchedule.from_betas(linear_betas())


def train(net: Net, stop: float) -> None:
    """Train, or go on; raises TooLate when it is."""
    table, settings = schedule(), config(net)
    torch.manual_seed(net.seed)
    unet = UNet(**NETS[net.space])
    x = data(net.space)

    def loss_of_step(k: int) -> Tensor:
        generator = generator_of_step(net.seed, k)
        chosen = x[torch.randint(0, len(x), (BATCH,), generator=generator)]
        x_0 = from_uint8(chosen) if net.space == "pixels" else net.std * chosen

        def eps_model(x_t: Tensor, t: Tensor) -> Tensor:
            return unet(x_t, t).float()

        return simple_loss(eps_model, x_0, table, generator=generator)

    def on_step(step: int, value: float | None) -> None:
        stored = step % settings.checkpoint_every == 0
        if stored and step < settings.steps and time.time() > stop:
            raise TooLate

    run = {"net": NETS[net.space], "std": net.std}
    resume = (net.folder / CHECKPOINT).exists()
    fit(
        unet, loss_of_step, settings, settings=run, folder=net.folder, resume=resume,
        on_step=on_step,
    )  # fmt: skip


def trained(net: Net) -> UNet:
    tensors, _ = read_safetensors(net.folder / CHECKPOINT)
    unet = UNet(**NETS[net.space])
    ema = {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")}
    unet.load_state_dict(ema)
    return unet.eval().requires_grad_(False)


@torch.no_grad()
def paint(row: Row) -> Tensor:
    """N images, not clamped."""
    net, table = row.net, schedule()
    model = in_bf16(trained(net), resolve_precision("auto", "cpu") == "bf16")
    if row.clip != "none":
        limit = 1.0 if row.clip == "box" else net.std * data("latents").abs().max().item()
        model = clip_x0(model, table, -limit, limit)  # type: ignore[assignment]
    autoencoder, scale = load_autoencoder()
    images = []
    for x_T in noise(net.space, N, net.seed).split(CHUNK):
        x = last(ddim_sample(model, x_T, timesteps(table.T, S), table))
        if net.space == "latents":
            x = autoencoder.decode(x / (scale * net.std))
        images.append(x)
    return torch.cat(images)


def patches(x: Tensor) -> Tensor:
    """Mean and standard deviation of every 4 x 4 patch and colour: (B, 3, 32, 32) -> (B, 384)."""
    x = x.clamp(-1, 1)
    mean, square = F.avg_pool2d(x, 4), F.avg_pool2d(x * x, 4)
    return torch.cat([mean, (square - mean**2).clamp(min=0).sqrt()], 1).flatten(1)


def clean(x: Tensor) -> float:
    """The share of pixels within 16 of 255 levels of a colour of the palette."""
    pixels = to_uint8(x).short()
    colours = torch.tensor(list(PALETTE.values())).short()
    near = [((pixels - c[:, None, None]).abs().amax(1) <= 16) for c in colours]
    return torch.stack(near).any(0).double().mean().item()


@functools.cache
def real() -> Moments:
    return moments(patches(shapes(*REAL).x))


def measured(x: Tensor) -> dict[str, float]:
    return {"frechet": frechet_distance(moments(patches(x)), real()), "clean": clean(x)}


@torch.no_grad()
def floors() -> list[dict[str, Any]]:
    """Real scenes, as many as a row has samples; and the same through the autoencoder."""
    autoencoder, found = load_autoencoder()[0], []
    for seed in SEEDS:
        x = shapes(N, FLOOR + seed).x
        rebuilt = [autoencoder.decode(autoencoder.encode(part).mean) for part in x.split(CHUNK)]
        found.append({"seed": seed, "name": "real", **measured(x)})
        found.append({"seed": seed, "name": "rebuilt", **measured(torch.cat(rebuilt))})
    return found


def entry(row: Row) -> dict[str, Any] | None:
    """The row of the table, if its samples are there."""
    if not row.file.exists():
        return None
    tensors, _ = read_safetensors(row.file)
    x, net = from_uint8(tensors["pixels"]), row.net
    one, steps = counts()[net.space], config(net).steps
    return {
        **dataclasses.asdict(net),
        "clip": row.clip,
        "steps": steps,
        "training": 3 * BATCH * steps * one,
        "sample": S * one + (counts()["decode"] if net.space == "latents" else 0),
        **measured(x),
        **({"pixels": packed(tensors["pixels"][:SHOWN])} if net.seed == 0 else {}),
    }


def packed(pixels: Tensor) -> str:
    return base64.b64encode(zlib.compress(pixels.numpy().tobytes(), 9)).decode()


def rows_of(net: Net) -> list[Row]:
    if net.space == "pixels":
        return [Row(net, "box")]
    return [Row(net, clip) for clip in ("none", "own")]


def plan() -> list[Net]:
    """What to train, the most wanted first."""
    own = round(1 / load_autoencoder()[1], 2)  # ours, without its scale
    return [
        Net("pixels", 0),
        *(Net("latents", 0, std=std) for std in (1.0, *STDS)),
        Net("pixels", 0, times=4),
        *(Net(space, seed) for seed in SEEDS[1:] for space in ("latents", "pixels")),
        Net("latents", 0, std=own),
    ]


def work(stop: float) -> None:
    for net in plan():
        for row in rows_of(net):
            if row.file.exists():
                continue
            if time.time() > stop:
                raise TooLate
            began = time.process_time()
            train(net, stop)
            x = paint(row)
            write_safetensors(row.file, {"pixels": to_uint8(x)}, {"format": "pt"})
            print(row, measured(x), f"{time.process_time() - began:.0f} s", flush=True)


def main() -> None:
    try:
        work(stop_at("latent_table"))
    except TooLate:
        print("time is up: the same command goes on")
    both = counts()["encode"] + counts()["decode"]
    rows = [found for net in plan() for row in rows_of(net) if (found := entry(row))]
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.latent_table", "cpu"),
            "autoencoder_sha256": sha256(VAE / "diffusion_pytorch_model.safetensors"),
            "autoencoder": AUTOENCODER.steps * AUTOENCODER.batch_size * 3 * both,
            "sampler": f"ddim_sample(eta = 0), timesteps(1000, {S})",
            "n": N,
            "counts": counts(),
            "lr": RATE,
            "floors": floors(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
