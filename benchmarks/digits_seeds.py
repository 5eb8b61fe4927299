"""How much does the digits recipe vary with its seed?

Trains it with three seeds, draws 500 images of each net, and counts those that a classifier of real
digits recognizes as the label asked for. Written to diffusion_core/tables/digits_seeds.json.

    python -m benchmarks.digits_seeds
"""

import dataclasses
import time
from pathlib import Path

import torch
from sklearn.svm import SVC

from diffusion_core.commands import provenance
from diffusion_core.data import load_images, to_uint8
from diffusion_core.ddpm import clip_x0, ddpm_sample, last
from diffusion_core.pretrained import write_json
from diffusion_core.recipes import RECIPES
from diffusion_core.schedules import timesteps
from diffusion_core.training import train

FILE = Path(__file__).resolve().parents[1] / "diffusion_core" / "tables" / "digits_seeds.json"
SEEDS, N, STEPS = (0, 1, 2), 500, 50


def main() -> None:
    real = load_images("digits", "train")
    held_out = load_images("digits", "test")
    judge = SVC(C=10).fit(real.pixels.flatten(1).numpy(), real.labels.numpy())
    rows = []
    for seed in SEEDS:
        recipe = RECIPES["digits"]
        torch.manual_seed(seed)
        net, schedule = recipe.build()
        began = time.process_time()
        result = train(
            net, real, schedule, dataclasses.replace(recipe.config, seed=seed), device="cpu"
        )
        used = time.process_time() - began
        y = torch.arange(N) % 10
        generator = torch.Generator().manual_seed(seed)
        model = clip_x0(lambda x, t, net=result.ema, y=y: net(x, t, y), schedule)
        x_T = torch.randn(N, 1, 8, 8, generator=generator)
        x = last(
            ddpm_sample(model, x_T, timesteps(schedule.T, STEPS), schedule, generator=generator)
        )
        found = judge.predict(to_uint8(x).flatten(1).numpy())
        rows.append(
            {
                "seed": seed,
                "agreement": float((found == y.numpy()).mean()),
                "training_cpu_seconds": round(used, 1),
            }
        )
        print(rows[-1], flush=True)
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.digits_seeds", "cpu"),
            "config": dataclasses.asdict(RECIPES["digits"].config),
            "judge": "sklearn.svm.SVC(C=10) of the training digits",
            "judge_on_held_out_digits": float(
                judge.score(held_out.pixels.flatten(1).numpy(), held_out.labels.numpy())
            ),
            "samples": N,
            "sampler": f"ddpm_sample, timesteps(1000, {STEPS}), x_0 clipped, no guidance",
            "seeds": rows,
        },
    )
    print(FILE)


if __name__ == "__main__":
    main()
