"""How much does the digits recipe vary with its seed?

Trains it with three seeds, draws 500 images of each net, and counts those that a classifier of real
digits recognizes as the label asked for. Written to diffusion_core/tables/digits_seeds.json.

    python -m benchmarks.digits_seeds
"""

import dataclasses
import time
from typing import Any

import torch
from sklearn.svm import SVC
from torch import nn

from diffusion_core.cli.provenance import provenance
from diffusion_core.data import load_images, to_uint8
from diffusion_core.ddpm import ddpm_sample
from diffusion_core.files import write_json
from diffusion_core.prediction import clip_x0
from diffusion_core.pretrained import TABLES
from diffusion_core.sampling import last
from diffusion_core.schedules import NoiseSchedule, timesteps
from diffusion_core.training import RECIPES, TrainConfig, TrainResult, train

FILE = TABLES / "digits_seeds.json"
SEEDS, N, STEPS = (0, 1, 2), 500, 50


@dataclasses.dataclass(frozen=True)
class Judge:
    """A classifier of real digits, and how good it is at digits that it has not seen."""

    model: SVC
    held_out: float

    @classmethod
    def trained(cls) -> "Judge":
        real, held_out = (load_images("digits", split) for split in ("train", "test"))
        pixels = [data.pixels.flatten(1).numpy() for data in (real, held_out)]
        model = SVC(C=10).fit(pixels[0], real.labels.numpy())
        return cls(model, float(model.score(pixels[1], held_out.labels.numpy())))

    def agreement(self, net: nn.Module, schedule: NoiseSchedule, n: int, seed: int) -> float:
        """The share of n samples that are read as the label asked for."""
        y = torch.arange(n) % 10
        generator = torch.Generator().manual_seed(seed)
        model = clip_x0(lambda x, t: net(x, t, y), schedule)
        x_T = torch.randn(n, 1, 8, 8, generator=generator)
        grid = timesteps(schedule.T, STEPS)
        x = last(ddpm_sample(model, x_T, grid, schedule, generator=generator))
        found = self.model.predict(to_uint8(x).flatten(1).numpy())
        return float((found == y.numpy()).mean())


def trained(config: TrainConfig, **more: Any) -> tuple[TrainResult, NoiseSchedule, float]:
    """The digits net trained with these settings, its schedule, and the CPU time in s."""
    torch.manual_seed(config.seed)
    net, schedule = RECIPES["digits"].build()
    began = time.process_time()
    result = train(net, load_images("digits", "train"), schedule, config, device="cpu", **more)
    return result, schedule, time.process_time() - began


def main() -> None:
    judge, rows = Judge.trained(), []
    for seed in SEEDS:
        config = dataclasses.replace(RECIPES["digits"].config, seed=seed)
        result, schedule, used = trained(config)
        agreement = judge.agreement(result.ema, schedule, N, seed)
        rows.append({"seed": seed, "agreement": agreement, "training_cpu_seconds": round(used, 1)})
        print(rows[-1], flush=True)
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.digits_seeds", "cpu"),
            "config": dataclasses.asdict(RECIPES["digits"].config),
            "judge": "sklearn.svm.SVC(C=10) of the training digits",
            "judge_on_held_out_digits": judge.held_out,
            "samples": N,
            "sampler": f"ddpm_sample, timesteps(1000, {STEPS}), x_0 clipped, no guidance",
            "seeds": rows,
        },
    )
    print(FILE)


if __name__ == "__main__":
    main()
