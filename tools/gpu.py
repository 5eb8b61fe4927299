"""Everything that wants a GPU, one after the other, into one folder: train, evaluate, benchmark.

`python -m tools.gpu --data DIR` (`make gpu DATA=DIR`) works on a CPU too, slowly. Every part is resumable: stop it at any
moment, give the same command again, and it goes on where it was. It needs no virtual environment of its own: any Python that has
the packages of requirements.txt (and requirements-compare.txt, for the benchmarks) will do. How the result is shipped is said in
CONTRIBUTING.md, "New weights".
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tools import layout


def commands(arguments):
    """(name, arguments of python -m, file that says it is done) of every part, in order."""
    out = Path(arguments.out)
    weights = out / "weights"
    data = ["--data", arguments.data] if arguments.data else []
    device = ["--device", arguments.device]
    changes = [
        f"--{key}={value}"
        for key, value in (("steps", arguments.steps), ("batch-size", arguments.batch_size))
        if value
    ]
    resume = ["--resume"] if (out / "runs" / "mnist" / "checkpoint.safetensors").exists() else []
    where = ["--weights", str(weights), *device, *data]
    yield (
        "train",
        [
            "diffusion_core",
            "train",
            "mnist",
            *resume,
            "--runs",
            str(out / "runs"),
            "--out",
            str(weights),
            *device,
            *data,
            *changes,
        ],
        weights / "mnist.json",
    )
    for steps in arguments.chains:
        table = weights / (
            "mnist_evaluation.json"
            if steps == arguments.chains[-1]
            else f"mnist_evaluation_{steps}.json"
        )
        yield (
            f"evaluate, {steps} steps",
            [
                "diffusion_core",
                "evaluate",
                "mnist",
                "--samples",
                str(arguments.samples),
                "--steps",
                str(steps),
                "--out",
                str(table),
                *where,
            ],
            None,
        )
    yield (
        "benchmarks",
        [
            "benchmarks",
            "overhead",
            "recipes",
            "budget",
            *device,
            *data,
            "--out",
            str(out / "benchmarks.json"),
        ],
        None,
    )


def build_parser():
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        help="folder that holds torchvision's MNIST (default: $DIFFUSION_DATA, then ~/.cache/diffusion_data, into which it is downloaded)",
    )
    parser.add_argument(
        "--device", default=None, help="cuda or cpu (default: a GPU if there is one)"
    )
    parser.add_argument("--steps", type=int, help="training steps instead of the recipe's")
    parser.add_argument("--batch-size", type=int, help="batch size instead of the recipe's")
    parser.add_argument(
        "--samples",
        type=int,
        help="images for each seed of an evaluation (default: 10,000 on a GPU, 2,000 on a CPU)",
    )
    parser.add_argument(
        "--chains",
        type=int,
        nargs="+",
        help="steps of the evaluated chains, that of mnist_evaluation.json and of the card last (default: 1000 100 on a GPU, 50 on a CPU)",
    )
    parser.add_argument(
        "--out", default="results", help="the folder for everything (default: results)"
    )
    return parser


def main():
    arguments = build_parser().parse_args()
    arguments.out = str(Path(arguments.out).resolve())
    arguments.data = arguments.data and str(Path(arguments.data).resolve())
    if arguments.device is None:
        import torch

        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = arguments.device != "cpu"
    arguments.samples = arguments.samples or (10_000 if gpu else 2_000)
    arguments.chains = arguments.chains or ([1000, 100] if gpu else [50])
    for name, command, done in commands(arguments):
        if done is not None and done.exists():
            print(f"{name}: already in {done}", flush=True)
            continue
        print(f"{name}: python -m {' '.join(command)}", flush=True)
        began = time.monotonic()
        code = subprocess.run(
            [sys.executable, "-m", *command], cwd=layout.ROOT, check=False
        ).returncode
        print(f"{name}: {time.monotonic() - began:.0f} s, exit status {code}", flush=True)
        if code:
            sys.exit(
                f"{name} failed; what was finished is kept in {arguments.out}: mend it and give the same command again"
            )
    print(f"results: {arguments.out}")


if __name__ == "__main__":
    main()
