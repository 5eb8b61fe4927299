"""The work behind `python -m diffusion_core`: train, sample, evaluate."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion_core._validate import check_device, check_whole
from diffusion_core.data import Images, load_images, to_uint8
from diffusion_core.evaluation import load_classifier, metrics, samples, save_moments
from diffusion_core.files import sha256, write_json
from diffusion_core.networks import Classifier, classify
from diffusion_core.pretrained import Pretrained, generate, load_pretrained, save_net
from diffusion_core.training import (
    CHECKPOINT,
    RECIPES,
    Recipe,
    TrainConfig,
    elapsed,
    is_main,
    resolve_precision,
    steps_done,
    train_classifier,
)
from diffusion_core.training import train as train_net


def recipe_list() -> str:
    """One line for each recipe."""
    return "\n".join(f"  {name:<16}  {recipe.about}" for name, recipe in RECIPES.items())


def hardware(device: str | None = None) -> str:
    """The device's name, in words."""
    kind = device and torch.device(device).type
    if kind in (None, "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    if kind in (None, "mps") and torch.backends.mps.is_available():
        return f"Apple GPU ({platform.machine()})"
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} thread{'' if threads == 1 else 's'})"


def provenance(command: str, device: str | None) -> dict[str, Any]:
    """Command, date, hardware and versions, for a card."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(device),
        "torch": torch.__version__.split("+")[0],
    }


def data_card(name: str, data: Images) -> dict[str, Any]:
    """Name, size and hash of the training images."""
    return {
        "name": name,
        "images": len(data.pixels),
        "sha256": hashlib.sha256(data.pixels.numpy().tobytes()).hexdigest(),
    }


def train(arguments: argparse.Namespace) -> None:
    """`train RECIPE`."""
    if arguments.recipe == "mnist_classifier":
        return _train_classifier(arguments)
    if arguments.recipe not in RECIPES:
        raise ValueError(
            f"no recipe named {arguments.recipe!r}; choose from {[*RECIPES, 'mnist_classifier']}"
        )
    recipe = RECIPES[arguments.recipe]
    changes = {
        k: getattr(arguments, k)
        for k in ("steps", "batch_size", "seed", "precision")
        if getattr(arguments, k) is not None
    }
    if arguments.device is not None:
        check_device(arguments.device)
    config = dataclasses.replace(recipe.config, **changes)
    config = dataclasses.replace(
        config, precision=resolve_precision(config.precision, arguments.device)
    )
    folder = arguments.runs / arguments.recipe
    done = _steps_done(folder) if arguments.resume else 0
    out = arguments.out or folder
    data = load_images(recipe.data, "train", arguments.data)
    test = load_images(recipe.data, "test", arguments.data)
    validation = Images(
        test.pixels[: recipe.validation_images], test.labels[: recipe.validation_images]
    )
    torch.manual_seed(config.seed)
    net, schedule = recipe.build()
    with tqdm(total=config.steps, initial=done, unit="step", desc=arguments.recipe) as bar:

        def on_step(step: int, loss: float | None) -> None:
            bar.update(step - bar.n)
            if loss is not None:
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        result = train_net(
            net,
            data,
            schedule,
            config,
            validation=validation,
            folder=folder,
            resume=arguments.resume,
            device=arguments.device,
            on_step=on_step,
        )
    if not is_main():
        return
    there = out / f"{arguments.recipe}.json"
    if done == config.steps and there.exists():  # the card keeps the day and the machine of the run
        print(f"weights and card: {there.with_suffix('.safetensors')} and {there}")
        return
    if arguments.device is not None:
        changes["device"] = arguments.device
    card = {
        "about": recipe.about,
        **provenance(_command("train", arguments.recipe, changes), arguments.device),
        "data": data_card(recipe.data, data),
        **_training_card(recipe, config, result.history),
        "resumed_at_step": done,
    }
    path = save_net(result.ema, arguments.recipe, card, out, recipe.stored_as)
    print(f"weights and card: {path} and {path.with_suffix('.json')}")


def _training_card(
    recipe: Recipe, config: TrainConfig, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a card says of the run itself."""
    seconds = elapsed(history)
    return {
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


def _command(verb: str, name: str, changes: dict[str, Any]) -> str:
    flags = "".join(f" --{key.replace('_', '-')} {value}" for key, value in changes.items())
    return f"python -m diffusion_core {verb} {name}{flags}"


def _steps_done(folder: Path) -> int:
    path = folder / CHECKPOINT
    return steps_done(path) if path.exists() else 0


def _train_classifier(arguments: argparse.Namespace) -> None:
    for name in ("steps", "batch_size", "precision", "resume"):
        if getattr(arguments, name):
            raise ValueError(
                f"train mnist_classifier takes no --{name.replace('_', '-')}: it is trained in "
                "one piece, in about ten minutes"
            )
    if arguments.device not in (None, "cpu"):
        raise ValueError(f"--device {arguments.device}: mnist_classifier is trained on the CPU")
    out = arguments.out or arguments.runs / "mnist_classifier"
    there = out / "mnist_classifier.json"
    if there.exists():
        trained = json.loads(there.read_text(encoding="utf-8")).get("seed", 0)
        if trained != (arguments.seed or 0):
            raise ValueError(f"{there} was trained with --seed {trained}; choose another --out")
        print(f"already trained: {there.with_suffix('.safetensors')}")
        return
    data = load_images("mnist", "train", arguments.data)
    test = load_images("mnist", "test", arguments.data)
    epochs, batch_size, seed = 6, 128, arguments.seed or 0
    steps = epochs * (len(data.pixels) // batch_size)
    began = time.perf_counter()
    with tqdm(total=steps, unit="step", desc="mnist_classifier") as bar:
        net = train_classifier(
            data,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            on_step=lambda step, loss: bar.update(step - bar.n),
        )
    seconds = time.perf_counter() - began
    run = {
        "seed": seed,
        "epochs": epochs,
        "steps": steps,
        "images_per_s": round(steps * batch_size / seconds, 1),
        "seconds": round(seconds, 1),
    }
    changes = {"seed": seed} if seed else {}
    store_classifier(net, data, test, _command("train", "mnist_classifier", changes), run, out)


def store_classifier(
    net: Classifier, data: Images, test: Images, command: str, run: dict[str, Any], folder: Path
) -> None:
    """Write the classifier, the moments of its features over the real images, and its card, which
    says of the run what `run` does."""
    predicted, test_features = classify(net, test.x)
    _, train_features = classify(net, data.x)
    accuracy, n = metrics.agreement(predicted, test.labels), len(test.labels)
    moments = {"train": metrics.moments(train_features), "test": metrics.moments(test_features)}
    stored = save_moments("mnist_classifier", moments, folder)
    card = {
        "about": "MNIST classifier: the judge of labels, and the 64 features of the distances",
        **provenance(command, "cpu"),
        "data": data_card("mnist", data),
        **run,
        "metrics": {
            "test_accuracy": accuracy,
            "standard_error": math.sqrt(accuracy * (1 - accuracy) / n),
            "n": n,
        },
        "moments_sha256": sha256(stored),
        "licence": "MIT",
    }
    path = save_net(net, "mnist_classifier", card, folder)
    print(f"test accuracy {accuracy:.4f}; weights and card: {path} and {path.with_suffix('.json')}")


def parse_labels(text: str, classes: int | None) -> Tensor | None:
    """ "0-9", "3,1,4" or "none" into labels.

    Raises: ValueError if it cannot be read or a label is out of range.
    """
    if text == "none":
        return None
    parts = [re.fullmatch(r" *(\d+)(?:-(\d+))? *", part) for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"--labels {text!r} cannot be read; write 0-9 or 3,1,4 or none")
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts]
    if any(low > high for low, high in ends):
        raise ValueError(f"--labels {text!r}: a range goes from the smaller label to the larger")
    labels = [label for low, high in ends for label in range(low, high + 1)]
    if classes is None or not all(label < classes for label in labels):
        known = (
            "has no labels: use none" if classes is None else f"knows the labels 0-{classes - 1}"
        )
        raise ValueError(f"--labels {text!r}: this network {known}")
    return torch.tensor(labels)


def sample(arguments: argparse.Namespace) -> None:
    """`sample NAME`."""
    from PIL import Image

    check_whole("--each", arguments.each, 1)
    check_device(arguments.device)
    _check_image_file(arguments.out, Image.registered_extensions())
    model = load_pretrained(arguments.name, arguments.weights)
    labels = parse_labels(arguments.labels, model.net.classes)
    columns = len(labels) if labels is not None else 10
    y = labels.repeat(arguments.each) if labels is not None else None
    x = generate(
        model, y, columns * arguments.each, arguments.steps, arguments.seed, arguments.device
    )
    pixels = to_uint8(x).permute(0, 2, 3, 1).numpy()
    h, w, c = pixels.shape[1:]
    grid = (
        pixels.reshape(arguments.each, columns, h, w, c)
        .swapaxes(1, 2)
        .reshape(arguments.each * h, columns * w, c)
    )
    image = Image.fromarray(grid.squeeze(-1) if c == 1 else grid)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST).save(arguments.out)
    print(f"{len(x)} images: {arguments.out}")


def _check_image_file(out: Path, known: dict[str, str]) -> None:
    if out.suffix.lower() not in known:
        raise ValueError(f"--out {out}: {out.suffix!r} is no kind of image file; write grid.png")


def evaluate(arguments: argparse.Namespace) -> None:
    """`evaluate NAME`."""
    check_whole("--samples", arguments.samples, 2)
    check_whole("--seeds", arguments.seeds, 1)
    check_device(arguments.device)
    model = load_pretrained(arguments.name, arguments.weights)
    judge, _, judge_card = load_classifier()
    setting = _setting(model, judge, judge_card, arguments)
    settings = {
        "weights_sha256": model.card["sha256"],
        "classifier_sha256": judge_card["sha256"],
        "samples": arguments.samples,
        "steps": arguments.steps,
        "sampler": "ddpm_sample, variance='posterior', timesteps(1000, steps, 'trailing'), "
        "x_0 clipped to [-1, 1], no guidance",
        "labels": "of the training images drawn for the floor",
    }
    data = data_card(model.card["data"]["name"], setting.real)
    out = arguments.out or Path("runs") / f"{arguments.name}_evaluation.json"
    rows = _rows_kept(out, settings, data)
    for seed in range(len(rows), arguments.seeds):
        rows.append(samples.evaluate_seed(model, setting, seed))
        report = {
            "settings": settings,
            **provenance(_evaluate_command(arguments), arguments.device),
            "seeds": rows,
        }
        write_json(out, report | {"data": data, "summary": samples.summary(rows)})
    found = samples.summary(rows)
    if arguments.weights is not None:
        measured = {"samples": arguments.samples, "steps": arguments.steps, **found}
        write_json(arguments.weights / f"{arguments.name}.json", model.card | {"metrics": measured})
    for key, value in found.items():
        spread = "" if value["std"] is None else f" ± {value['std']:.2g}"
        print(f"{key:<24} {value['mean']:.4g}{spread} (n = {value['n']} seeds)")
    print(f"table: {out}")


def _setting(
    model: Pretrained, judge: Classifier, card: dict[str, Any], arguments: argparse.Namespace
) -> samples.Setting:
    """What all seeds share, with the data loaded.

    Raises: ValueError if the judge does not know the model's data, or more samples are wanted
        than there are training images.
    """
    name = model.card["data"]["name"]
    if name != card["data"]["name"]:
        raise ValueError(
            f"{arguments.name!r} was trained on {name!r}, but the classifier that judges it on "
            f"{card['data']['name']!r}: its distances would mean nothing"
        )
    train_images, test = (load_images(name, split, arguments.data) for split in ("train", "test"))
    if arguments.samples > len(train_images.pixels):
        raise ValueError(
            f"--samples {arguments.samples}: there are {len(train_images.pixels)} training images "
            "to compare with; ask for as many at most"
        )
    _, features = classify(judge, test.x)
    return samples.Setting(
        judge, features, train_images, test, arguments.samples, arguments.steps, arguments.device
    )


def _rows_kept(out: Path, settings: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished seeds of an earlier call with the same settings and data.

    Raises: ValueError if the file holds something else.
    """
    if not out.exists():
        return []
    try:
        kept = json.loads(out.read_text(encoding="utf-8"))
        there, seeds = kept["settings"] | {"data": kept["data"]}, kept["seeds"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out} is no table of evaluate, or damaged ({error!r}); move it away or choose "
            "another --out"
        ) from error
    differs = [
        f"{key}: {there.get(key)!r} there, {value!r} here"
        for key, value in {**settings, "data": data}.items()
        if there.get(key) != value
    ]
    if differs:
        raise ValueError(
            f"{out} holds another evaluation ({'; '.join(differs)}); move it away or choose "
            "another --out"
        )
    return seeds


def _evaluate_command(arguments: argparse.Namespace) -> str:
    flags = f"--samples {arguments.samples} --seeds {arguments.seeds} --steps {arguments.steps}"
    flags += "" if arguments.device == "cpu" else f" --device {arguments.device}"
    return f"python -m diffusion_core evaluate {arguments.name} {flags}"
