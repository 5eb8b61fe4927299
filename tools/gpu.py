"""What wants a GPU, part after part, in the minutes that there are: `python -m tools.gpu --minutes 20 --data DIR`.

parts:
{parts}

A part measures first how fast the device is, and then makes itself as large as its share of the minutes allows: on a CPU, small. One
part alone has all the minutes: `python -m tools.gpu mnist --minutes 8`. What is finished is stored at once; stopped at any moment, the
same command goes on. It needs no virtual environment of its own: any Python that has the packages of requirements.txt (for the benchmarks,
requirements-compare.txt too) will do. The results are at most seven files, none above 16 MiB; CONTRIBUTING.md, "New weights", says what
becomes of them.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from diffusion_core._validate import UsageError, check_device
from diffusion_core.cli.evaluate import evaluate
from diffusion_core.cli.pocket import store
from diffusion_core.cli.provenance import provenance
from diffusion_core.cli.train import train
from diffusion_core.data import load_images
from diffusion_core.files import check_room, write_json
from diffusion_core.pretrained import Pretrained, generate
from diffusion_core.text_to_image import train_pocket
from diffusion_core.text_to_image.autoencoder import AUTOENCODER
from diffusion_core.text_to_image.train import TEXT_TO_IMAGE
from diffusion_core.training import CHECKPOINT, RECIPES
from diffusion_core.training import train as train_net
from tools.layout import ROOT

SPARE = 0.85  # of the minutes are planned with
SIZES = (10_000, 5_000, 2_000, 1_000, 500, 200, 100, 20)  # images for each seed of an evaluation
EVALUATIONS = (
    ((1000, 100), 3),
    ((100,), 3),
    ((100,), 1),
    ((20,), 1),
)  # chains and seeds: the first that fits
BOUND = 6_200  # network calls of one image in the bits per dimension of a seed
METRICS = 5.0  # seconds of a seed on the CPU: features, distances, neighbours


class Job(NamedTuple):
    """What a part is told: where, with what, and how long it may take."""

    device: str
    data: str | None
    out: Path
    runs: Path
    seconds: float
    store: Callable[[], None]  # writes what is in the record


class Part(NamedTuple):
    """One thing to do on a GPU. `share`: its part of the minutes, beside those of the others."""

    name: str
    about: str
    share: float
    run: Callable[[Job, dict], None]


def mnist(job, record, recipe="mnist", changes=None):
    """Train a recipe for as many steps as fit, and evaluate it; the plan is made once, and kept in the record."""
    began = time.monotonic()
    changes = {"batch_size": 256, "p2_gamma": 1.0} if changes is None else changes
    if "plan" not in record:
        measured = measure(job, recipe, changes)
        record["measured"] = {name: float(f"{value:.3g}") for name, value in measured.items()}
        record["plan"] = plan(job.seconds - (time.monotonic() - began), **measured)
        if job.device.startswith("cuda"):
            record["waits_of_a_step"] = waits_of_a_step(job, recipe, changes)
        job.store()
    made, weights, where = (
        record["plan"],
        job.out / "weights",
        {"device": job.device, "data": job.data},
    )
    print(f"{recipe}: {made}", flush=True)
    resume = (job.runs / recipe / CHECKPOINT).exists()
    train(
        recipe, steps=made["steps"], resume=resume, runs=job.runs, out=weights, **changes, **where
    )
    record["seconds_until_trained"] = round(time.monotonic() - began, 1)
    job.store()
    for steps in made["chains"]:
        last = steps == made["chains"][-1]
        table = weights / (
            f"{recipe}_evaluation.json" if last else f"{recipe}_evaluation_{steps}.json"
        )
        evaluate(
            recipe,
            samples=made["samples"],
            seeds=made["seeds"],
            steps=steps,
            weights=weights,
            out=table,
            **where,
        )


def measure(job, recipe, changes):
    """Seconds of a training step, and of one image in one step of a chain."""
    gpu = job.device != "cpu"
    steps, images = (50, 2_500) if gpu else (2, 100)
    net, schedule = RECIPES[recipe].build()
    every = dict.fromkeys(("log_every", "validate_every", "checkpoint_every"), steps)
    config = dataclasses.replace(RECIPES[recipe].config, steps=2 * steps, **every, **changes)
    data = load_images(RECIPES[recipe].data, "train", job.data)
    warm, timed = train_net(net, data, schedule, config, device=job.device).history
    model = Pretrained(net, schedule, {"data": {"name": RECIPES[recipe].data}})

    def sampling(steps):
        began = time.monotonic()
        generate(model, data.labels[:images], images, steps, 0, job.device)
        return time.monotonic() - began

    sampling(2)
    chain = max(sampling(3 * steps) - sampling(steps), 1e-6) / (2 * steps * images)
    return {
        "training_step": (timed["seconds"] - warm["seconds"]) / steps,
        "chain_step_of_an_image": chain,
    }


def waits_of_a_step(job, recipe, changes):
    """How often a training step between two logged ones waits for the GPU: it should never."""
    data = load_images(RECIPES[recipe].data, "train", job.data)

    def waits(steps):
        net, schedule = RECIPES[recipe].build()
        every = dict.fromkeys(("log_every", "validate_every", "checkpoint_every"), steps)
        config = dataclasses.replace(RECIPES[recipe].config, steps=steps, **every, **changes)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train_net(net, data, schedule, config, device=job.device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    waits(2)
    return (waits(30) - waits(10)) / 20


def plan(seconds, training_step, chain_step_of_an_image):
    """How long to train and how much to evaluate: the largest evaluation that takes at most half the time, the rest for training."""
    seconds *= SPARE
    for chains, seeds in EVALUATIONS:
        for samples in SIZES:
            of_a_seed = METRICS + BOUND * chain_step_of_an_image
            cost = seeds * sum(
                of_a_seed + samples * steps * chain_step_of_an_image for steps in chains
            )
            if cost <= seconds / 2 and (samples >= 1_000 or seeds == 1):
                break
        else:
            continue
        break
    return {
        "steps": max(int((seconds - cost) / training_step), 2),
        "samples": samples,
        "seeds": seeds,
        "chains": list(chains),
    }


def pocket(job, record):
    """Train the pocket Stable Diffusion for as many steps as fit; the folder comes back as one file."""
    began = time.monotonic()
    if "steps" not in record:
        few = {
            "autoencoder": dataclasses.replace(AUTOENCODER, steps=60, log_every=20),
            "text_to_image": dataclasses.replace(TEXT_TO_IMAGE, steps=60, log_every=20),
        }
        with tempfile.TemporaryDirectory() as folder:
            _, about = train_pocket(folder, device=job.device, pictures=500, scenes=500, **few)
        of_a_step = {name: about[name]["seconds"] / 60 for name in few}
        left = SPARE * job.seconds - (time.monotonic() - began)
        left -= AUTOENCODER.steps * of_a_step["autoencoder"]
        record |= {"measured": of_a_step}
        record["steps"] = max(int(left / of_a_step["text_to_image"]), 2)
        job.store()
    config = dataclasses.replace(TEXT_TO_IMAGE, steps=record["steps"])
    pipeline, about = train_pocket(job.runs / "pocket", device=job.device, text_to_image=config)
    weights = job.out / "pocket"
    store(pipeline, about | provenance("python -m tools.gpu pocket", job.device), weights)
    shutil.make_archive(str(job.out / "pocket"), "zip", weights)
    shutil.rmtree(weights)


def benchmarks(job, record):
    """The tables of `python -m benchmarks` that a GPU changes, in as many rounds as fit (three at least)."""
    command = [sys.executable, "-m", "benchmarks", "overhead", "recipes", "--device", job.device]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        # a table of two rounds, and two of warm-up
        subprocess.run(
            [*command[:4], *command[5:], "--rounds", "2", "--out", f"{folder}/b.json"],
            cwd=ROOT,
            check=True,
        )
        of_a_round = (time.monotonic() - began) / 4
    # four tables: three of overhead, one of recipes
    rounds = int((job.seconds - (time.monotonic() - began)) * SPARE / (of_a_round * 4 / 3)) - 2
    record["rounds"] = min(max(rounds, 3), 15)
    subprocess.run(
        [*command, "--rounds", str(record["rounds"]), "--out", str(job.out / "benchmarks.json")],
        cwd=ROOT,
        check=True,
    )


PARTS = (
    Part(
        "mnist",
        "train the network of the book (loss weights of P2, 256 images a step), measure it on both chains",
        0.75,
        mnist,
    ),
    Part(
        "pocket",
        "train the pocket Stable Diffusion: autoencoder, text encoder and U-Net",
        0.75,
        pocket,
    ),
    Part(
        "benchmarks",
        "our training and sampling steps beside those of other libraries",
        0.25,
        benchmarks,
    ),
)


def build_parser():
    about = __doc__.format(parts="\n".join(f"  {part.name:<12}{part.about}" for part in PARTS))
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="which parts (default: all)")
    parser.add_argument(
        "--minutes", type=float, default=30, help="what all parts together may take (default: 30)"
    )
    parser.add_argument(
        "--data",
        help="folder that holds torchvision's MNIST folder (default: $DIFFUSION_DATA, then ~/.cache/diffusion_data, into which it is downloaded)",
    )
    parser.add_argument("--device", help="cuda or cpu (default: a GPU if there is one)")
    parser.add_argument(
        "--out", default="results", help="the folder of the results (default: results)"
    )
    parser.add_argument(
        "--runs",
        default="runs/gpu",
        help="the folder of the checkpoints, which are large (default: runs/gpu)",
    )
    return parser


def main(argv=None):
    arguments = build_parser().parse_args(argv)
    unknown = set(arguments.parts) - {part.name for part in PARTS}
    if unknown:
        sys.exit(f"no part named {sorted(unknown)}; choose from {[part.name for part in PARTS]}")
    if not arguments.minutes > 0:
        sys.exit(f"--minutes {arguments.minutes} must be above 0")
    chosen = [
        part for part in PARTS if part.name in (arguments.parts or {part.name for part in PARTS})
    ]
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    out, runs = Path(arguments.out).resolve(), Path(arguments.runs).resolve()
    data = arguments.data and str(Path(arguments.data).resolve())
    file = out / "gpu.json"
    try:
        check_device(device)
        out.mkdir(parents=True, exist_ok=True)
        check_room(file, 100 * 2**20)
        if any(part.name != "pocket" for part in chosen):
            load_images("mnist", "test", data)
    except (UsageError, OSError) as error:
        sys.exit(
            f"error: {error}. Elsewhere, take the four files of MNIST/raw along and name their folder: --data DIR"
        )
    records = json.loads(file.read_text(encoding="utf8")) if file.exists() else {}
    end = time.monotonic() + 60 * arguments.minutes
    for i, part in enumerate(chosen):
        record = records.setdefault(part.name, {})
        if record.get("finished"):
            print(f"{part.name}: finished before, see {file}", flush=True)
            continue
        began, share = time.monotonic(), part.share / sum(later.share for later in chosen[i:])
        record |= provenance(f"python -m tools.gpu {part.name}", device)
        try:
            part.run(
                Job(
                    device,
                    data,
                    out,
                    runs,
                    (end - began) * share,
                    lambda: write_json(file, records),
                ),
                record,
            )
            record["finished"] = True
        except (UsageError, OSError, FloatingPointError, subprocess.CalledProcessError) as error:
            sys.exit(
                f"{part.name} failed ({error}); what was finished is kept in {out}: mend it and give the same command again"
            )
        finally:
            record["seconds"] = round(record.get("seconds", 0) + time.monotonic() - began, 1)
            write_json(file, records)
        print(f"{part.name}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"results: {out}")


if __name__ == "__main__":
    main()
