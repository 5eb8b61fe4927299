"""`python -m diffusion_core train RECIPE`: from data to weights with a card."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from diffusion_core._validate import UsageError, check_device
from diffusion_core.cli import pocket
from diffusion_core.cli.classifier import CLASSIFIERS, ClassifierConfig, train_judge
from diffusion_core.cli.options import (
    add_command,
    add_data,
    check_file,
    check_folder,
)
from diffusion_core.cli.provenance import command_line, data_card, provenance
from diffusion_core.data import Images, load_images
from diffusion_core.pretrained import save_net
from diffusion_core.training import (
    CHECKPOINT,
    RECIPES,
    Precision,
    TrainConfig,
    TrainResult,
    elapsed,
    is_main,
    resolve_precision,
    steps_done,
)
from diffusion_core.training import train as train_net

_HELP = f"""Train a recipe at full length and store the result with its card.

recipes:
{chr(10).join(f"  {name:<16}  {recipe.about}" for name, recipe in (RECIPES | CLASSIFIERS).items())}
  {pocket.NAME:<16}  {pocket.ABOUT}

A run writes RUNS/NAME/checkpoint.safetensors every few hundred steps, atomically. If it is
stopped, in whatever way, the same command with --resume goes on from there and arrives at the
same weights as an uninterrupted run (bit for bit on a CPU). Ctrl-C ends the step and writes one
more. On several GPUs (the batch size stays the global one): torchrun --nproc-per-node 2 -m
diffusion_core train NAME, or accelerate launch in place of torchrun; with --device cpu on as many
processes of the CPU.

examples:
  python -m diffusion_core train digits --steps 200
  DIFFUSION_DATA=~/data python -m diffusion_core train mnist --device cuda
  python -m diffusion_core train mnist --data ~/data --resume
"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add `train` and its options to the command line."""
    parser = add_command(commands, train, "train a recipe", _HELP)
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="what to train (see above)")
    add_data(parser)
    add("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    add("--steps", type=int, help="instead of the recipe's number of steps")
    add("--batch-size", type=int, help="instead of the recipe's global batch size")
    add("--lr", type=float, help="instead of the recipe's highest learning rate")
    add("--grad-clip", type=float, help="instead of the recipe's largest norm of the gradient")
    add("--p2-gamma", type=float, help="instead of the recipe's exponent of the loss weights")
    add("--seed", type=int, help="instead of the recipe's seed")
    add(
        "--precision",
        choices=get_args(Precision),
        help="instead of the recipe's (auto: bf16 where the hardware multiplies it faster)",
    )
    add("--resume", action="store_true", help="go on from the checkpoint in the run's folder")
    add(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where runs live (default: ./runs)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="where weights and card go (default: the run's folder)",
    )


def train(
    recipe: str,
    *,
    data: str | None = None,
    device: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    grad_clip: float | None = None,
    p2_gamma: float | None = None,
    seed: int | None = None,
    precision: Precision | None = None,
    resume: bool = False,
    runs: Path = Path("runs"),
    out: Path | None = None,
) -> None:
    """Train a recipe, and store its weights and their card in `out`. What is None is as the recipe
    says.

    Raises: UsageError; FileExistsError; FloatingPointError; OSError.
    """
    known = RECIPES | CLASSIFIERS
    if recipe not in (*known, pocket.NAME):
        raise UsageError(f"no recipe named {recipe!r}; choose from {[*known, pocket.NAME]}")
    changes = {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "grad_clip": grad_clip,
        "p2_gamma": p2_gamma,
        "seed": seed,
        "precision": precision,
    }
    folder = runs / recipe
    command = command_line("train", recipe, changes | {"device": device})
    if recipe == pocket.NAME:
        pocket.train_and_store(changes, device, resume, folder, out or folder, command)
        return
    config = _config(recipe, known[recipe].config, changes, device)
    card = (out or folder) / f"{recipe}.json"
    if resume and recipe in CLASSIFIERS:
        raise UsageError(f"train {recipe} takes no --resume: it is trained in one piece")
    check_folder("--runs", folder)
    check_file("--out", card)
    done = _steps_done(folder, resume)
    trained = _is_trained(card, config)
    if trained and done is None:
        print("already trained, nothing was done")
    elif isinstance(config, ClassifierConfig):
        train_judge(recipe, config, data, command, card)
    else:
        result, images = _train_net(recipe, config, data, device, folder, done)
        if not is_main():
            return
        if not (trained and done == config.steps):  # the card keeps the day of the run
            about = _card(recipe, config, images, result.history)
            about |= provenance(command, device) | {"resumed_at_step": done or 0}
            save_net(result.ema, recipe, about, card.parent, RECIPES[recipe].stored_as)
    print(f"weights and card: {card.with_suffix('.safetensors')} and {card}")


def _config(
    recipe: str,
    config: TrainConfig | ClassifierConfig,
    changes: dict[str, Any],
    device: str | None,
) -> TrainConfig | ClassifierConfig:
    """The recipe's configuration with the changes that were asked for.

    Raises: UsageError if it does not take one of them, or not this value, or not this device.
    """
    wanted = {name: value for name, value in changes.items() if value is not None}
    for name in wanted.keys() - {field.name for field in dataclasses.fields(config)}:
        raise UsageError(f"train {recipe} takes no --{name.replace('_', '-')}")
    if isinstance(config, ClassifierConfig) and device not in (None, "cpu"):
        raise UsageError(f"--device {device}: {recipe} is trained on the CPU")
    if device is not None:
        check_device(device)
    config = dataclasses.replace(config, **wanted)
    if isinstance(config, ClassifierConfig):
        return config
    precision = resolve_precision(config.precision, device)
    return dataclasses.replace(config, precision=precision)


def _is_trained(card: Path, config: TrainConfig | ClassifierConfig) -> bool:
    """Whether the weights of this configuration are there already, with their card.

    Raises: UsageError if they are those of another one: nothing is overwritten.
    """
    if not card.exists():
        return False
    try:
        there = json.loads(card.read_text(encoding="utf-8"))
        there = there.get("config", there)  # the first cards of classifiers have none
        ours = json.loads(json.dumps(dataclasses.asdict(config)))
        differs = [
            f"{name} = {there[name]}, not {value}"
            for name, value in ours.items()
            if there.get(name, value) != value
        ]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{card} is in the way, and no card; choose another --out") from error
    if differs:
        raise UsageError(
            f"{card.with_suffix('.safetensors')} was trained with {', '.join(differs)}; choose "
            "another --out, or move it away"
        )
    return True


def _train_net(
    name: str,
    config: TrainConfig,
    data_folder: str | None,
    device: str | None,
    folder: Path,
    done: int | None,
) -> tuple[TrainResult, Images]:
    """Train a noise predictor, or go on with it after `done` steps.

    Returns: the result, and the images it was trained on.
    """
    recipe = RECIPES[name]
    data, test = (load_images(recipe.data, split, data_folder) for split in ("train", "test"))
    validation = Images(*(part[: recipe.validation_images] for part in test))
    torch.manual_seed(config.seed)
    net, schedule = recipe.build()
    with tqdm(total=config.steps, initial=done or 0, unit="step", desc=name) as bar:

        def on_step(step: int, loss: float | None) -> None:
            bar.update(step - bar.n)
            if loss is not None:
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        try:
            result = train_net(
                net,
                data,
                schedule,
                config,
                validation=validation,
                folder=folder,
                resume=done is not None,
                device=device,
                on_step=on_step,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_what_is_kept(folder)) from None
    return result, data


def _card(
    name: str, config: TrainConfig, data: Images, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a card says of the recipe and of the run itself."""
    recipe, seconds = RECIPES[name], elapsed(history)
    return {
        "about": recipe.about,
        "data": data_card(recipe.data, data),
        "schedule": recipe.schedule,
        "config": dataclasses.asdict(config),
        "seed": config.seed,
        "steps": config.steps,
        "images_per_s": round(config.steps * config.batch_size / seconds, 1),
        "seconds": round(seconds, 1),
        "weights_are": f"moving average, decay {config.ema_decay}",
        "licence": recipe.licence,
        "history": history,
    }


def _steps_done(folder: Path, resume: bool) -> int | None:
    """The steps of the checkpoint in a run's folder; None if there is none.

    Raises: UsageError if there is one but it is not to be resumed, or there is none to resume.
    """
    path = folder / CHECKPOINT
    if resume and not path.exists():
        raise UsageError(f"--resume: there is no {path}; to start at step 0, leave --resume out")
    if not resume and path.exists():
        raise UsageError(
            f"{path} holds step {steps_done(path)} of a run; go on with --resume, or choose "
            "another --runs"
        )
    return steps_done(path) if resume else None


def _what_is_kept(folder: Path) -> str:
    path = folder / CHECKPOINT
    if not path.exists():
        return "nothing was stored yet"
    return f"{path} holds step {steps_done(path)}; the same command with --resume goes on"
