"""What each part of the U-Net buys: `python -m benchmarks.ablation` (five minutes on one core).

The net of the digits recipe at half the width is trained again and again, each time with one part
taken out, and its validation loss is written to diffusion_core/tables/ablation.json with everything
needed to repeat it. The chapter on the U-Net draws its figure from that file and recomputes one entry.

Nothing in the package knows that it is being ablated: each variant wraps, replaces or initialises a
piece of an ordinary UNet. Runs of one seed see the same images, times and noise in the same order,
so that differences between variants can be taken seed by seed. A stopped command goes on where it
was: entries that stand in the file are not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from diffusion_core.data import load_images
from diffusion_core.files import write_json
from diffusion_core.networks import ResidualBlock, UNet, Upsample, timestep_embedding
from diffusion_core.schedules import make_schedule
from diffusion_core.training import NanLoss, TrainConfig, train

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "diffusion_core" / "tables" / "ablation.json"
SEEDS = (0, 1, 2)
NET = {
    "width": 16,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (False, True),
    "classes": 10,
}
CONFIG = TrainConfig(
    steps=200,
    batch_size=32,
    lr=2e-3,
    warmup=30,
    ema_decay=0.97,
    precision="fp32",
    log_every=10,
    validate_every=200,
)


# --- one part taken out ---


class Timeless(nn.Module):
    """The net with its time argument cut off: it is told t = 0, whatever t is."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net, self.classes, self.null_label = net, net.classes, net.null_label

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(x, torch.zeros_like(t), y)


class TimeAtTheInput(Timeless):
    """The blocks are told t = 0; the time is added once, to the channels of the first convolution."""

    def __init__(self, net: UNet) -> None:
        super().__init__(net)
        net.conv_in = WithTime(net.conv_in)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.net.conv_in.code = timestep_embedding(t, self.net.conv_in.time.in_features)
        return super().forward(x, t, y)


class WithTime(nn.Module):
    """A convolution that adds a linear map of a time's code to its channels."""

    def __init__(self, conv: nn.Conv2d, dim: int = 64) -> None:
        super().__init__()
        self.conv, self.time = conv, nn.Linear(dim, conv.out_channels)
        self.code = torch.zeros(1, dim)

    @property
    def weight(self) -> Tensor:
        """Of the convolution: a net takes its dtype from it."""
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.time(self.code)[:, :, None, None]


class WithoutSkip(nn.Module):
    """A level of the up path that sees zeros where the skip should be."""

    def __init__(self, level: nn.Module, channels: int) -> None:
        super().__init__()
        self.level, self.channels = level, channels  # of the path itself; the skip comes after

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        path, skip = x.split([self.channels, x.shape[1] - self.channels], dim=1)
        return self.level(torch.cat([path, torch.zeros_like(skip)], 1), emb)


class Nothing(nn.Module):
    """What stands in the place of a residual block's skip: 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def no_skips(net: UNet) -> UNet:
    """The skips from the down to the up path are replaced by zeros."""
    channels = net.middle[-1].block.conv2.out_channels
    for i, module in enumerate(net.up):
        if not isinstance(module, Upsample):
            net.up[i] = WithoutSkip(module, channels)
            channels = module.block.conv2.out_channels
    return net


def no_group_norm(net: UNet) -> UNet:
    """Every GroupNorm becomes the identity."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return net


def no_zero_init(net: UNet) -> UNet:
    """The layers that start at zero are initialised as PyTorch would."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not bool(module.weight.any()):
            module.reset_parameters()
    return net


def no_residual(net: UNet) -> UNet:
    """The skip around each residual block is cut; with zero layers nothing would pass, so they are
    initialised as in no_zero_init."""
    for module in no_zero_init(net).modules():
        if isinstance(module, ResidualBlock):
            module.skip = Nothing()
    return net


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "full": lambda: UNet(**NET),
    "no time embedding": lambda: Timeless(UNet(**NET)),
    "time at the input": lambda: TimeAtTheInput(UNet(**NET)),
    "no skips": lambda: no_skips(UNet(**NET)),
    "no attention": lambda: UNet(**{**NET, "attention": (False, False)}),
    "no group norm": lambda: no_group_norm(UNet(**NET)),
    "no zero init": lambda: no_zero_init(UNet(**NET)),
    "no residual": lambda: no_residual(UNet(**NET)),
}


# --- running ---


def run(variant: str, seed: int) -> dict:
    """Train one variant with one seed.

    Returns: its validation loss in ten tenths of 1..T (the moving average's, fixed noise), the loss
        of every tenth training step, and its number of parameters; loss_by_t None and the reason if
        the loss stopped being finite.
    """
    torch.manual_seed(seed)
    net = VARIANTS[variant]()
    config = dataclasses.replace(CONFIG, seed=seed)
    entry = {
        "variant": variant,
        "seed": seed,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    began = time.process_time()
    try:
        history = train(
            net,
            load_images("digits", "train"),
            make_schedule("linear"),
            config,
            validation=load_images("digits", "test"),
            device="cpu",
        ).history
    except NanLoss as error:
        return {**entry, "loss_by_t": None, "stopped": str(error)}
    return {
        **entry,
        "loss_by_t": history[-1]["loss_by_t"],
        "training_loss": [row["loss"] for row in history],
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def settings() -> dict:
    """All that decides the numbers, and where they were made."""
    config = {k: v for k, v in dataclasses.asdict(CONFIG).items() if k != "seed"}
    return json.loads(json.dumps({"net": NET, "config": config, "data": "digits", "T": 1000}))


def source_hash() -> str:
    """SHA-256 over the files whose change could change a number."""
    package = ROOT / "diffusion_core"
    files = [ROOT / "benchmarks" / "ablation.py", package / "ddpm.py", package / "schedules.py"]
    for room in ("data", "networks", "training"):
        files += sorted((package / room).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def summary(entries: list[dict]) -> dict[str, dict]:
    """Per variant: the validation loss of each seed, and the difference from the full net, seed by
    seed, with its mean and standard error over the seeds; and, averaged over the seeds, the loss in
    each tenth of 1..T and that of every tenth training step.

    Returns: only variants of which every run ended; `difference` needs the full net's runs too.
    """
    loss = {(e["variant"], e["seed"]): mean(e["loss_by_t"]) for e in entries if e["loss_by_t"]}
    found = {}
    for variant in VARIANTS:
        seeds = [seed for seed in SEEDS if (variant, seed) in loss and ("full", seed) in loss]
        if len(seeds) < len(SEEDS):
            continue  # not all runs are there yet
        values = [loss[variant, seed] for seed in seeds]
        gaps = [loss[variant, seed] - loss["full", seed] for seed in seeds]
        found[variant] = {
            "loss": [round(v, 5) for v in values],
            "difference": round(mean(gaps), 5),
            "standard_error": round(stdev(gaps) / math.sqrt(len(gaps)), 5),
            **{
                key: [round(mean(values), 4) for values in zip(*rows)]
                for key in ("loss_by_t", "training_loss")
                for rows in [[e[key] for e in entries if e["variant"] == variant]]
            },
        }
    return found


def write(entries: list[dict]) -> None:
    """The file, whole or not at all."""
    content = {
        "command": "python -m benchmarks.ablation",
        "made": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "cpu_minutes": round(sum(e.get("cpu_seconds", 0) for e in entries) / 60, 1),
            "source_sha256": source_hash(),
        },
        "settings": settings(),
        "summary": summary(entries),
        "runs": entries,
    }
    write_json(FILE, content)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true", help="throw the stored entries away first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    entries = []
    if FILE.exists() and not options.fresh:
        stored = json.loads(FILE.read_text(encoding="utf8"))
        if stored["settings"] != settings():
            raise SystemExit(f"{FILE} was made with other settings; give --fresh to start again")
        entries = stored["runs"]
    done = {(e["variant"], e["seed"]) for e in entries}
    for seed in SEEDS:
        for variant in VARIANTS:
            if (variant, seed) in done:
                continue
            entry = run(variant, seed)
            entries.append(entry)
            write(entries)
            loss = "diverged" if entry["loss_by_t"] is None else f"{mean(entry['loss_by_t']):.4f}"
            print(f"seed {seed}  {variant:18} {loss}", flush=True)
    write(entries)
    print(f"The table is in {FILE}.")


if __name__ == "__main__":
    main()
