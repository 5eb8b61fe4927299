"""Is a training step in bf16 faster than in float32 on this machine?

Times steps of the recipes' nets in both precisions, interleaved, and writes the ratio to
diffusion_core/tables/precision.json. CPU seconds on a CPU, so that other programs disturb little.

    python -m benchmarks.precision
"""

import time

import torch

from diffusion_core.cli.provenance import provenance
from diffusion_core.data import SIZES
from diffusion_core.ddpm import eps_loss
from diffusion_core.files import write_json
from diffusion_core.pretrained import TABLES
from diffusion_core.training import RECIPES

FILE = TABLES / "precision.json"
NAMES = ("digits", "mnist")
REPEATS = 9


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_a_step(name: str, device: str) -> dict[str, list[float]]:
    recipe = RECIPES[name]
    net, schedule = recipe.build()
    net = net.to(device)
    optimizer = torch.optim.Adam(net.parameters())
    B = recipe.config.batch_size
    x_0 = torch.rand(B, 1, SIZES[name], SIZES[name], device=device) * 2 - 1
    t, y = torch.randint(1, schedule.T + 1, (B,)), torch.arange(B, device=device) % 10
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for repeat in range(REPEATS + 1):
        for precision in times:
            began = clock(device)
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                loss = eps_loss(
                    lambda x, t: net(x, t, y).float(), x_0, t, torch.randn_like(x_0), schedule
                )
            loss.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if repeat:  # the first round warms up
                times[precision].append(clock(device) - began)
    return times


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name in NAMES:
        times = {k: torch.tensor(v) for k, v in seconds_a_step(name, device).items()}
        ratios = times["bf16"] / times["fp32"]
        rows.append(
            {
                "net": name,
                "batch_size": RECIPES[name].config.batch_size,
                "fp32_ms": round(1000 * times["fp32"].median().item(), 1),
                "bf16_ms": round(1000 * times["bf16"].median().item(), 1),
                "ratio": round(ratios.median().item(), 3),
                "ratio_quartiles": [round(ratios.quantile(q).item(), 3) for q in (0.25, 0.75)],
                "repeats": REPEATS,
            }
        )
        print(rows[-1], flush=True)
    write_json(FILE, {**provenance("python -m benchmarks.precision", device), "nets": rows})
    print(FILE)


if __name__ == "__main__":
    main()
