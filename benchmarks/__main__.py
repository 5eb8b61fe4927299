"""Our code beside lucidrains' and diffusers', interleaved in one run: `python -m benchmarks` (`make bench`).

Three tables, written to book/_data/benchmarks.json, each with its provenance. A finished table, or row of the last one, is kept:
a stopped run goes on, and --again measures anew.
  overhead  one net, three libraries around it: what the library costs besides the net (aim: ratio >= 1.0)
  recipes   each library with the net its own documentation builds: multiply-adds, peak memory, time of a step
  budget    Fréchet distance after equal seconds of training (on a CPU: of processor time), sampled alike (needs MNIST: --data or
            DIFFUSION_DATA)
A ratio is the other's time over ours: above 1, ours is faster. Each is a median over rounds with the middle half of the rounds
beside it; in every round each contender runs once, in an order drawn anew.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.rivals import Contender
from diffusion_core.cli.provenance import provenance
from diffusion_core.data import from_uint8, load_images
from diffusion_core.ddpm import ddpm_sample
from diffusion_core.evaluation import frechet_distance, load_classifier, moments
from diffusion_core.files import write_json
from diffusion_core.networks import classify
from diffusion_core.prediction import clip_x0
from diffusion_core.sampling import last
from diffusion_core.schedules import timesteps
from diffusion_core.training import EMA

FILE = Path(__file__).resolve().parents[1] / "book" / "_data" / "benchmarks.json"


def multiply_adds(eps_model, device: str) -> int:
    """Multiply-adds of one forward pass of one image; attention as matrix products, for the counter has no formula of a CPU's
    fused one."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, 1, rivals.SIZE, rivals.SIZE, device=device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        eps_model(x, torch.ones(1, dtype=torch.long, device=device))
    return counter.get_total_flops() // 2


class Trainer:
    """One contender's training step: loss, backward, clipping at norm 1, Adam, under bf16 autocast if asked."""

    def __init__(self, contender: Contender, device: str, bf16: bool) -> None:
        self.contender, self.device, self.bf16 = contender, device, bf16
        contender.net.to(device).train()
        self.parameters = list(contender.net.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, **contender.adam)

    def step(self, x_0: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.contender.loss(x_0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def budget_seconds_of(function, device: str) -> float:
    """Time of one call as the budget counts it: wall time of a GPU; on a CPU the processor's time, summed over threads, which
    what else the machine does hardly changes."""
    if device == "cuda":
        return seconds_of(function, device)
    began = time.process_time()
    function()
    return time.process_time() - began


def seconds_of(function, device: str) -> float:
    """Wall time of one call, the device's queue emptied before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def interleaved(calls: dict, rounds: int, device: str, repeat: int) -> dict:
    """{name: [seconds a call, one a round]}; two rounds of warm-up are not counted."""
    times = {name: [] for name in calls}
    order = list(calls)
    for i in range(rounds + 2):
        random.Random(i).shuffle(order)
        for name in order:
            seconds = (
                seconds_of(lambda f=calls[name]: [f() for _ in range(repeat)], device) / repeat
            )
            if i >= 2:
                times[name].append(seconds)
    return times


def spread(values: list[float]) -> dict:
    """Median and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high, "n": len(values)}


def compare(contenders: list[Contender], arguments: argparse.Namespace) -> list[dict]:
    """Rows of table (a) or (b): milliseconds of a training and of a sampling step, and their ratios to ours, round by round."""
    device, bf16 = arguments.device, arguments.precision == "bf16"
    trainers = {c.name: Trainer(c, device, bf16) for c in contenders}
    batch_size = arguments.batch_size or 64
    x = torch.randn(batch_size, 1, rivals.SIZE, rivals.SIZE, device=device).clamp(-1, 1)

    def sampling(c: Contender):
        @torch.no_grad()
        def call() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                c.sample_step(x, 500)

        return call

    train = interleaved(
        {n: (lambda t=t: t.step(x)) for n, t in trainers.items()},
        arguments.rounds,
        device,
        arguments.repeat,
    )
    peak = {n: peak_memory(t, x) for n, t in trainers.items()}
    sample = interleaved(
        {c.name: sampling(c) for c in contenders}, arguments.rounds, device, arguments.repeat
    )
    rows = []
    for c in contenders:
        rows.append(
            {
                "name": c.name,
                "parameters": sum(p.numel() for p in c.net.parameters()),
                "multiply_adds": multiply_adds(c.eps_model, device),
                "precision": arguments.precision,
                "batch_size": batch_size,
                "peak_memory_mib": peak[c.name],
                "train_ms": spread([1e3 * v for v in train[c.name]]),
                "sample_ms": spread([1e3 * v for v in sample[c.name]]),
                "train_ratio": spread(
                    [b / a for a, b in zip(train["ours"], train[c.name], strict=True)]
                ),
                "sample_ratio": spread(
                    [b / a for a, b in zip(sample["ours"], sample[c.name], strict=True)]
                ),
            }
        )
    return rows


def peak_memory(trainer: Trainer, x: Tensor) -> float:
    """MiB that tensors take at the height of one training step: weights, Adam's two moments, and what the step allocates."""
    kept = sum(p.numel() * p.element_size() for p in trainer.parameters) * 3
    return round((kept + allocated_by(lambda: trainer.step(x), trainer.device)) / 2**20, 1)


def allocated_by(step, device: str) -> int:
    """Bytes above the start at the height of one call: of the allocator on a GPU, of the profiler's record on a CPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as record:
        step()
    changes = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    height = now = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        now += event.nbytes()
        height = max(height, now)
    return height


def padded(pixels: Tensor) -> Tensor:
    """28 x 28 to 32 x 32, with background around."""
    return torch.nn.functional.pad(pixels, (2, 2, 2, 2))


def budget_rows(arguments: argparse.Namespace, rows: list[dict], store) -> None:
    """Table (c): train each contender for the longest budget on a clock that stops while it is measured; at each budget, the
    Fréchet distance of samples of its moving average. The same batch size, precision and sampler for all."""
    data, test = (
        load_images("mnist", "train", arguments.data),
        load_images("mnist", "test", arguments.data),
    )
    classifier, _, _ = load_classifier()
    classifier = classifier.to(arguments.device)
    reference = moments(classify(classifier, test.x)[1])
    schedule = rivals.schedule_of_all()
    pixels = padded(data.pixels).to(arguments.device)
    for seed in arguments.seeds:
        for c in rivals.recipes():
            if all(
                any(r["name"] == c.name and r["seed"] == seed and r["seconds"] == b for r in rows)
                for b in arguments.budgets
            ):
                continue
            rows[:] = [r for r in rows if not (r["name"] == c.name and r["seed"] == seed)]
            torch.manual_seed(seed)
            trainer = Trainer(c, arguments.device, arguments.precision == "bf16")
            ema = EMA(c.net, 0.999)
            spent, k = 0.0, 0
            for budget in arguments.budgets:
                while spent < budget:
                    step = functools.partial(one_step, trainer, ema, pixels, arguments, k)
                    spent += budget_seconds_of(step, arguments.device)
                    k += 1
                x = samples_of(c, ema.net, schedule, arguments, seed)
                _, features = classify(classifier, x)
                value = frechet_distance(moments(features), reference)
                rows.append(
                    {
                        "name": c.name,
                        "seed": seed,
                        "seconds": budget,
                        "steps": k,
                        "frechet": value,
                        "n": arguments.samples,
                    }
                )
                print(
                    f"budget: {c.name}, seed {seed}, {budget} s ({k} steps): Fréchet distance {value:.2f}",
                    flush=True,
                )
                store()
    if not any(r["name"] == "train images" for r in rows):
        chosen = torch.randperm(len(data.pixels), generator=torch.Generator().manual_seed(0))[
            : arguments.samples
        ]
        floor = frechet_distance(
            moments(classify(classifier, from_uint8(data.pixels[chosen]))[1]), reference
        )
        rows.append(
            {
                "name": "train images",
                "seed": 0,
                "seconds": 0,
                "steps": 0,
                "frechet": floor,
                "n": arguments.samples,
            }
        )
        store()


def one_step(
    trainer: Trainer, ema: EMA, pixels: Tensor, arguments: argparse.Namespace, k: int
) -> None:
    index = torch.randint(0, len(pixels), (arguments.batch_size,), device=pixels.device)
    trainer.step(from_uint8(pixels[index]))
    ema.update(trainer.contender.net, k)


@torch.no_grad()
def samples_of(
    c: Contender, averaged: nn.Module, schedule, arguments: argparse.Namespace, seed: int
) -> Tensor:
    """Images of the averaged weights along a strided chain, 28 x 28 again."""
    live = [p.detach().clone() for p in c.net.parameters()]
    for p, a in zip(c.net.parameters(), averaged.parameters(), strict=True):
        p.data.copy_(a)
    c.net.eval()
    generator = torch.Generator().manual_seed(seed)
    times, parts = timesteps(schedule.T, arguments.steps), []
    for n in torch.arange(arguments.samples).split(250):
        x_T = torch.randn(len(n), 1, rivals.SIZE, rivals.SIZE, generator=generator).to(
            arguments.device
        )
        with torch.autocast(
            arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"
        ):
            x = last(
                ddpm_sample(
                    clip_x0(c.eps_model, schedule), x_T, times, schedule, generator=generator
                )
            )
        parts.append(x[:, :, 2:-2, 2:-2].float())
    c.net.train()
    for p, a in zip(c.net.parameters(), live, strict=True):
        p.data.copy_(a)
    return torch.cat(parts)


def command(arguments: list[str]) -> str:
    """The call, without the folders of the machine that it ran on."""
    kept = [
        a
        for before, a in zip(["", *arguments], arguments, strict=False)
        if {a, before}.isdisjoint({"--data", "--out"})
    ]
    return " ".join(["python -m benchmarks", *kept])


def settle_budget(arguments: argparse.Namespace, result: dict) -> dict:
    """What the budget table is measured with: as the call says, else as its stored rows were, else the defaults; filled in.

    Raises: SystemExit if the call and the stored rows disagree.
    """
    stored = result.get("budget_settings", {})
    settings = {}
    for name, default in {"batch_size": 64, "samples": 1000, "steps": 50, "threads": 0}.items():
        given = getattr(arguments, name)
        settings[name] = stored.get(name, default) if given is None else given
        setattr(arguments, name, settings[name])
    if stored not in ({}, settings):
        raise SystemExit(
            f"{arguments.out} holds a budget table with other settings ({stored}); --again budget measures it anew"
        )
    known = {row["seconds"] for row in result.get("budget", []) if row["seconds"]}
    arguments.budgets = sorted({*(arguments.budgets or []), *known}) or [30, 60, 120]
    return settings


def forget(result: dict, tables: list[str]) -> None:
    """Drop these tables; the settings of the budget only with its rows."""
    for name in (*tables, *(["budget_settings"] if "budget" in tables else [])):
        result.pop(name, None)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        help="overhead, recipes, budget (default: the first two, and budget if --data or DIFFUSION_DATA says where MNIST is)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="forget what was measured before on this kind of device",
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda or cpu (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        default="bf16",
        help="of the networks' autocast (default: bf16)",
    )
    parser.add_argument(
        "--batch-size", type=int, help="images a step (default: 64; of the budget table as stored)"
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="of the first two tables (default: 15)"
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=None,
        help="steps in one timing (default: 1 on a CPU, 20 on a GPU)",
    )
    parser.add_argument("--data", help="folder with torchvision's MNIST")
    parser.add_argument(
        "--threads", type=int, help="of a CPU (default: all; with the budget table as stored)"
    )
    budget = "of the budget table (default: as stored, else "
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="+",
        metavar="SECONDS",
        help=f"seconds of training, {budget}30 60 120)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="of the budget table (default: 0 1 2)",
    )
    parser.add_argument("--samples", type=int, help=f"images for each distance {budget}1000)")
    parser.add_argument("--steps", type=int, help=f"sampling steps {budget}50)")
    parser.add_argument(
        "--out",
        type=Path,
        default=FILE,
        help="the file of results (default: book/_data/benchmarks.json)",
    )
    return parser


def main() -> None:
    arguments = build_parser().parse_args()
    arguments.repeat = arguments.repeat or (20 if arguments.device == "cuda" else 1)
    with_data = arguments.data or os.environ.get("DIFFUSION_DATA")
    tables = arguments.tables or ["overhead", "recipes", *(["budget"] if with_data else [])]
    unknown = set(tables) - {"overhead", "recipes", "budget"}
    if unknown:
        raise SystemExit(f"no table named {sorted(unknown)}; choose from overhead, recipes, budget")
    found = json.loads(arguments.out.read_text(encoding="utf8")) if arguments.out.exists() else {}
    key = f"{arguments.device} {arguments.precision}"
    result = found.setdefault(key, {})
    if arguments.again:
        forget(result, tables)
    if "budget" in tables:
        result["budget_settings"] = settle_budget(arguments, result)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    now = provenance(command(sys.argv[1:]), arguments.device)

    def store(name: str) -> None:
        result.setdefault("provenance", {})[name] = now
        write_json(arguments.out, found)

    for name in {"overhead", "recipes"} & result.keys() & set(tables):
        before = result["provenance"][name]
        print(f"{name}: kept from {before['date']}, {before['hardware']}; --again measures anew")
    if "overhead" in tables and "overhead" not in result:
        result["overhead"] = {
            whose: compare(rivals.same_net(whose), arguments)
            for whose in ("ours", "lucidrains", "diffusers")
        }
        store("overhead")
    if "recipes" in tables and "recipes" not in result:
        result["recipes"] = compare(rivals.recipes(), arguments)
        store("recipes")
    if "budget" in tables:
        budget_rows(arguments, result.setdefault("budget", []), lambda: store("budget"))
    show(result)
    print(f"tables: {arguments.out}")


def show(result: dict) -> None:
    """Print what was measured."""
    groups = {
        f"overhead, {whose}' net" if whose != "ours" else "overhead, our net": rows
        for whose, rows in result.get("overhead", {}).items()
    }
    groups["recipes"] = result.get("recipes", [])
    for title, rows in groups.items():
        for row in rows:
            train, sample = row["train_ratio"], row["sample_ratio"]
            print(
                f"{title:<28} {row['name']:<11} {row['parameters'] / 1e6:6.2f} M parameters {row['multiply_adds'] / 1e6:8.0f} M multiply-adds  "
                f"train {row['train_ms']['median']:8.1f} ms, ratio {train['median']:.2f} [{train['low']:.2f}, {train['high']:.2f}]  "
                f"sample {row['sample_ms']['median']:8.1f} ms, ratio {sample['median']:.2f} [{sample['low']:.2f}, {sample['high']:.2f}]"
            )


if __name__ == "__main__":
    main()
