"""`python -m diffusion_core evaluate NAME`: trained weights measured against real images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diffusion_core._validate import UsageError, check_whole
from diffusion_core.cli.options import (
    add_command,
    add_data,
    add_generation,
    check_file,
    load_for_sampling,
)
from diffusion_core.cli.provenance import command_line, data_card, provenance
from diffusion_core.data import load_images
from diffusion_core.evaluation import load_classifier
from diffusion_core.evaluation import samples as measures
from diffusion_core.files import write_json
from diffusion_core.networks import classify
from diffusion_core.pretrained import Pretrained, Sampler

_HELP = """Measure a network trained on MNIST against real images; write a JSON table with
provenance.

For each of --seeds seeds: draws --samples training images, and paints as many with the same
labels along a strided chain. Then: agreement of the classifier with the label asked for; Fréchet
and kernel distance to the test images, of the painted images and of the training images (the
floor); distance to the nearest training images (nearest_Q%: the one below which Q % of the
painted images lie; nearest_test_Q%: the same of real test images); an estimate of the bound on
the bits per dimension of test images. A finished seed is kept: the same command goes on where it
was stopped. With --weights, the summary also goes into the card there.

examples:
  python -m diffusion_core evaluate mnist --data ~/data --samples 2000 --steps 50
  python -m diffusion_core evaluate mnist --sampler ddim --steps 20 --out runs/ddim.json
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add `evaluate` and its options to the command line."""
    parser = add_command(commands, evaluate, "measure against real data", _HELP)
    add = parser.add_argument
    add_generation(parser, steps=50)
    add_data(parser)
    add("--samples", type=int, default=2000, help="images for each seed (default: 2000)")
    add("--seeds", type=int, default=3, help="how many seeds: 0, 1, … (default: 3)")
    add("--out", type=Path, metavar="FILE", help="default: runs/NAME_evaluation.json")


def evaluate(
    name: str,
    *,
    data: str | None = None,
    samples: int = 2000,
    seeds: int = 3,
    steps: int = 50,
    sampler: Sampler = "ddpm",
    eta: float | None = None,
    guidance: float | None = None,
    device: str = "cpu",
    weights: Path | None = None,
    out: Path | None = None,
) -> None:
    """Measure weights with one seed after the other; the table is written after each.

    Raises: UsageError; OSError.
    """
    check_whole("--samples", samples, 2)
    check_whole("--seeds", seeds, 1)
    out = out or Path("runs") / f"{name}_evaluation.json"
    check_file("--out", out)
    if weights is not None:
        check_file("--weights", weights / f"{name}.json")
    model = load_for_sampling(name, weights, device, steps, sampler, eta, guidance)
    judge, _, judge_card = load_classifier()
    _check_judge(name, model, judge_card)
    settings = {
        "weights_sha256": model.card["sha256"],
        "classifier_sha256": judge_card["sha256"],
        "samples": samples,
        "steps": steps,
        "sampler": _in_words(model, sampler, eta, guidance),
        "labels": "of the training images drawn for the floor",
    }
    of_data = model.card["data"]["name"]
    real, test = (load_images(of_data, split, data) for split in ("train", "test"))
    if samples > len(real.pixels):
        raise UsageError(
            f"--samples {samples}: there are {len(real.pixels)} training images to compare with; "
            "ask for as many at most"
        )
    described = data_card(of_data, real)
    rows = _rows_kept(out, settings, described)
    setting = measures.Setting(
        judge=judge,
        test_features=classify(judge, test.x)[1],
        real=real,
        test=test,
        samples=samples,
        steps=steps,
        device=device,
        sampler=sampler,
        eta=eta,
        guidance_scale=guidance,
    )
    command = _command(name, samples, seeds, steps, sampler, eta, guidance, device)
    for seed in range(len(rows), seeds):
        try:
            rows.append(measures.evaluate_seed(model, setting, seed))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{len(rows)} of {seeds} seeds are finished; the same command goes on"
            ) from None
        report = {"settings": settings, **provenance(command, device), "seeds": rows}
        write_json(out, report | {"data": described, "summary": measures.summary(rows)})
    found = measures.summary(rows)
    if weights is not None:
        how = {key: settings[key] for key in ("samples", "steps", "sampler")}
        write_json(weights / f"{name}.json", model.card | {"metrics": how | found})
    for key, value in found.items():
        spread = "" if value["std"] is None else f" ± {value['std']:.2g}"
        print(f"{key:<24} {value['mean']:.4g}{spread} (n = {value['n']} seeds)")
    print(f"table: {out}")


def _in_words(
    model: Pretrained, sampler: Sampler, eta: float | None, guidance: float | None
) -> str:
    """How the images are painted. Of ddpm without guidance the words never change: by them a
    stored table is recognised."""
    step = (
        "ddpm_sample, variance='posterior'"
        if sampler == "ddpm"
        else f"ddim_sample, eta={eta or 0.0}"
    )
    guided = "no guidance" if guidance is None else f"classifier-free guidance, scale {guidance}"
    grid = f"timesteps({model.schedule.T}, steps, 'trailing')"
    return f"{step}, {grid}, x_0 clipped to [-1, 1], {guided}"


def _command(
    name: str,
    samples: int,
    seeds: int,
    steps: int,
    sampler: Sampler,
    eta: float | None,
    guidance: float | None,
    device: str,
) -> str:
    """The command that stands in the table: what is not said by default."""
    options: dict[str, Any] = {"samples": samples, "seeds": seeds, "steps": steps}
    options |= {"sampler": None if sampler == "ddpm" else sampler, "eta": eta, "guidance": guidance}
    options |= {"device": None if device == "cpu" else device}
    return command_line("evaluate", name, options)


def _check_judge(name: str, model: Pretrained, judge: dict[str, Any]) -> None:
    """Raise UsageError unless the judge knows the model's data, and the model labels."""
    trained, judges = model.card["data"]["name"], judge["data"]["name"]
    if trained != judges:
        raise UsageError(
            f"{name!r} was trained on {trained!r}, but the classifier that judges it on "
            f"{judges!r}: its distances would mean nothing"
        )
    if model.net.classes is None:
        raise UsageError(f"{name!r} was trained without labels, but evaluate asks for labels")


def _rows_kept(out: Path, settings: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished seeds of an earlier call with the same settings and data.

    Raises: UsageError if the file holds something else.
    """
    if not out.exists():
        return []
    try:
        kept = json.loads(out.read_text(encoding="utf-8"))
        there, seeds = kept["settings"] | {"data": kept["data"]}, kept["seeds"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{out} is no table of evaluate, or damaged ({error!r}); move it away or choose "
            "another --out"
        ) from error
    differs = [
        f"{key}: {there.get(key)!r} there, {value!r} here"
        for key, value in {**settings, "data": data}.items()
        if there.get(key) != value
    ]
    if differs:
        raise UsageError(
            f"{out} holds another evaluation ({'; '.join(differs)}); move it away or choose "
            "another --out"
        )
    return seeds
