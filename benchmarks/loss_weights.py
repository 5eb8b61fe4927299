"""Does it help to weight the loss by the time, as in Choi et al. 2022 ("P2 weighting")?

Trains the digits recipe with gamma = 0 (no weights), 1/2 and 1, for half of its steps and for all
of them, with three seeds each; then the loss by t on held-out digits, without weights, and the
share of samples that a classifier of real digits reads as the label asked for. Written to
diffusion_core/tables/loss_weights.json.

    python -m benchmarks.loss_weights
"""

import dataclasses
import itertools

from benchmarks.digits_seeds import SEEDS, STEPS, Judge, trained
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import load_images
from diffusion_core.files import write_json
from diffusion_core.pretrained import TABLES
from diffusion_core.training import RECIPES

FILE = TABLES / "loss_weights.json"
GAMMAS, N = (0.0, 0.5, 1.0), 2_000
LENGTHS = (RECIPES["digits"].config.steps // 2, RECIPES["digits"].config.steps)


def main() -> None:
    judge, held_out, rows = Judge.trained(), load_images("digits", "test"), []
    for steps, seed, gamma in itertools.product(LENGTHS, SEEDS, GAMMAS):
        config = dataclasses.replace(
            RECIPES["digits"].config, steps=steps, seed=seed, p2_gamma=gamma, validate_every=steps
        )
        result, schedule, _ = trained(config, validation=held_out)
        rows.append(
            {
                "gamma": gamma,
                "steps": steps,
                "seed": seed,
                "agreement": judge.agreement(result.ema, schedule, N, seed),
                "loss_by_t": result.history[-1]["loss_by_t"],
            }
        )
        print(rows[-1], flush=True)
    write_json(
        FILE,
        {
            **provenance("python -m benchmarks.loss_weights", "cpu"),
            "config": dataclasses.asdict(RECIPES["digits"].config),
            "judge_on_held_out_digits": judge.held_out,
            "samples": N,
            "sampler": f"ddpm_sample, timesteps(1000, {STEPS}), x_0 clipped, no guidance",
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
