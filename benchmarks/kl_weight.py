"""What the weight of the KL term does to a small autoencoder: five weights, three seeds.

Each is trained as the chapter on latent diffusion trains its own, and measured on fresh scenes: the
error of its reconstructions, with latents as they are and with noise on them; how wide the latents
and their posteriors are; how many numbers of a latent carry anything. Written to
diffusion_core/tables/kl_weight.json. A stopped command goes on where it was.

    python -m benchmarks.kl_weight
    … --seconds 150    (stops after so long)
"""

import dataclasses
import itertools
import json
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.parts import stop_at
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import shapes
from diffusion_core.files import write_json
from diffusion_core.networks import AutoencoderKL
from diffusion_core.pretrained import TABLES
from diffusion_core.text_to_image.autoencoder import train_autoencoder
from diffusion_core.training import TrainConfig

FILE = TABLES / "kl_weight.json"
WEIGHTS = (2e-4, 0.0, 2e-2, 2.0, 0.2)
SEEDS = (0, 1, 2)
NET = {"channels": (16, 32, 32), "groups": 8}
CONFIG = TrainConfig(
    steps=240, batch_size=16, lr=4e-3, warmup=20, ema_decay=0.98, precision="fp32", log_every=240
)
TRAIN, TEST = (2_000, 1), (500, 2)  # how many scenes, of which seed
DISTURBANCE = 0.1  # of the latents' standard deviation
ALIVE = 0.05  # nats: a number of the latent with less carries nothing


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in decibels. Shapes: (B, 3, H, W) -> (B,)."""
    return 10 * torch.log10(4 / (x_hat.clamp(-1, 1) - x).square().flatten(1).mean(1))


@torch.no_grad()
def measure(net: AutoencoderKL, x: Tensor) -> dict[str, float]:
    posterior = net.encode(x)
    mean, std = posterior.mean, torch.exp(0.5 * posterior.log_var)
    z = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    errors = psnr(net.decode(mean), x)
    nats = 0.5 * (mean.square() + std.square() - 1 - posterior.log_var)
    return {
        "psnr": errors.mean().item(),
        "psnr_std": errors.std().item(),
        "psnr_disturbed": psnr(net.decode(mean + DISTURBANCE * mean.std() * z), x).mean().item(),
        "latent_std": mean.std().item(),
        "posterior_std": std.median().item(),
        "kl": posterior.kl().mean().item(),
        "alive": (nats.mean(0) > ALIVE).double().mean().item(),
    }


def trained(weight: float, seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    net = AutoencoderKL(**NET)
    config = dataclasses.replace(CONFIG, seed=seed)
    return train_autoencoder(net, shapes(*TRAIN).pixels, config, kl_weight=weight).ema


def main() -> None:
    stop = stop_at("kl_weight")
    settings = {"config": dataclasses.asdict(CONFIG), "net": NET, "train": TRAIN, "test": TEST}
    settings = json.loads(json.dumps(settings))
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    rows: list[dict[str, Any]] = table["rows"] if settings.items() <= table.items() else []
    for seed, weight in itertools.product(SEEDS, WEIGHTS):
        if any((row["weight"], row["seed"]) == (weight, seed) for row in rows):
            continue
        if time.time() > stop:
            break
        began = time.process_time()
        row = {"weight": weight, "seed": seed, **measure(trained(weight, seed), shapes(*TEST).x)}
        rows.append({**row, "processor_seconds": round(time.process_time() - began, 1)})
        made = provenance("python -m benchmarks.kl_weight", "cpu")
        write_json(FILE, {**made, **settings, "rows": rows})
        print({k: round(v, 4) for k, v in rows[-1].items()}, flush=True)
    print(f"{len(SEEDS) * len(WEIGHTS) - len(rows)} rows are open")


if __name__ == "__main__":
    main()
