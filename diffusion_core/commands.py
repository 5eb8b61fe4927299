"""The work behind `python -m diffusion_core`: train, sample, evaluate."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion_core import metrics
from diffusion_core.classifier import Classifier, classify, train_classifier
from diffusion_core.data import Images, from_uint8, load_images, to_uint8
from diffusion_core.ddpm import EpsModel, clip_x0, ddpm_sample
from diffusion_core.pretrained import (
    Pretrained,
    load_classifier,
    load_pretrained,
    save_moments,
    save_net,
    write_json,
)
from diffusion_core.recipes import RECIPES
from diffusion_core.schedules import timesteps
from diffusion_core.training import CHECKPOINT, elapsed
from diffusion_core.training import train as train_net

_NEAREST = 200  # images of a seed that are compared with every training image


def recipe_list() -> str:
    """One line for each recipe."""
    return "\n".join(f"  {name:<16}  {recipe.about}" for name, recipe in RECIPES.items())


def hardware(device: str | None = None) -> str:
    """The device's name, in words."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


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
    import hashlib

    return {
        "name": name,
        "images": len(data.pixels),
        "sha256": hashlib.sha256(data.pixels.numpy().tobytes()).hexdigest(),
    }


def train(arguments: argparse.Namespace) -> None:
    """`train RECIPE`."""
    from accelerate import PartialState

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
    config = dataclasses.replace(recipe.config, **changes)
    data = load_images(recipe.data, "train", arguments.data)
    test = load_images(recipe.data, "test", arguments.data)
    validation = Images(
        test.pixels[: recipe.validation_images], test.labels[: recipe.validation_images]
    )
    torch.manual_seed(config.seed)
    net, schedule = recipe.build()
    folder = arguments.runs / arguments.recipe
    done = _steps_done(folder) if arguments.resume else 0
    with tqdm(total=config.steps, initial=done, unit="step", desc=arguments.recipe) as bar:

        def on_step(step: int, loss: float) -> None:
            bar.update(step - bar.n)
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
    if not PartialState().is_main_process:
        return
    seconds = elapsed(result.history, config)
    card = {
        "about": recipe.about,
        **provenance(_command("train", arguments.recipe, changes), arguments.device),
        "data": data_card(recipe.data, data),
        "schedule": recipe.schedule,
        "config": dataclasses.asdict(config),
        "seed": config.seed,
        "steps": config.steps,
        "images_per_s": round(config.steps * config.batch_size / seconds, 1),
        "seconds": round(seconds, 1),
        "resumed_at_step": done,
        "weights_are": f"moving average, decay {config.ema_decay}",
        "licence": recipe.licence,
        "history": result.history,
    }
    path = save_net(result.ema, arguments.recipe, card, arguments.out or folder)
    print(f"weights and card: {path} and {path.with_suffix('.json')}")


def _command(verb: str, name: str, changes: dict[str, Any]) -> str:
    flags = "".join(f" --{key.replace('_', '-')} {value}" for key, value in changes.items())
    return f"python -m diffusion_core {verb} {name}{flags}"


def _steps_done(folder: Path) -> int:
    from diffusion_core.training import _step_of

    path = folder / CHECKPOINT
    return _step_of(path) if path.exists() else 0


def _train_classifier(arguments: argparse.Namespace) -> None:
    data, test = (
        load_images("mnist", "train", arguments.data),
        load_images("mnist", "test", arguments.data),
    )
    epochs, seed = 6, arguments.seed or 0
    began = time.perf_counter()
    with tqdm(
        total=epochs * (len(data.pixels) // 128), unit="step", desc="mnist_classifier"
    ) as bar:
        net = train_classifier(
            data, epochs=epochs, seed=seed, on_step=lambda step, loss: bar.update(step - bar.n)
        )
    store_classifier(
        net,
        data,
        test,
        time.perf_counter() - began,
        epochs,
        seed,
        arguments.out or arguments.runs / "mnist_classifier",
    )


def store_classifier(
    net: Classifier,
    data: Images,
    test: Images,
    seconds: float,
    epochs: int,
    seed: int,
    folder: Path,
) -> None:
    """Write the classifier, the moments of its features over the real images, and its card."""
    predicted, test_features = classify(net, test.x)
    _, train_features = classify(net, data.x)
    card = {
        "about": "MNIST classifier: the judge of labels, and the 64 features of the distances",
        **provenance("python -m diffusion_core train mnist_classifier", "cpu"),
        "data": data_card("mnist", data),
        "seed": seed,
        "epochs": epochs,
        "seconds": round(seconds, 1),
        "metrics": {
            "test_accuracy": metrics.agreement(predicted, test.labels),
            "n": len(test.labels),
        },
        "licence": "MIT",
    }
    path = save_net(net, "mnist_classifier", card, folder)
    save_moments(
        "mnist_classifier",
        {"train": metrics.moments(train_features), "test": metrics.moments(test_features)},
        folder,
    )
    print(
        f"test accuracy {card['metrics']['test_accuracy']:.4f}; weights and card: {path} and "
        f"{path.with_suffix('.json')}"
    )


def parse_labels(text: str, classes: int | None) -> Tensor | None:
    """ "0-9", "3,1,4" or "none" into labels.

    Raises: ValueError if it cannot be read or a label is out of range.
    """
    if text == "none":
        return None
    try:
        labels = [
            label
            for part in text.split(",")
            for label in (
                range(int(part.split("-")[0]), int(part.split("-")[1]) + 1)
                if "-" in part
                else [int(part)]
            )
        ]
    except ValueError:
        raise ValueError(f"--labels {text!r} cannot be read; write 0-9 or 3,1,4 or none") from None
    if classes is None or not labels or not all(0 <= label < classes for label in labels):
        known = (
            "has no labels: use none" if classes is None else f"knows the labels 0-{classes - 1}"
        )
        raise ValueError(f"--labels {text!r}: this network {known}")
    return torch.tensor(labels)


def generate(
    model: Pretrained,
    y: Tensor | None,
    n: int,
    steps: int,
    seed: int,
    device: str,
    batch_size: int | None = None,
) -> Tensor:
    """n images along a strided chain, x_0 clipped to [-1, 1]: (n, C, H, W) on the CPU. Image i has
    a generator of its own.

    Raises: ValueError if y does not hold n labels.
    """
    if y is not None and len(y) != n:
        raise ValueError(f"{len(y)} labels for n = {n} images")
    net, schedule = model.net.to(device), model.schedule
    size = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}[
        model.card["data"]["name"]
    ]
    times, parts = timesteps(schedule.T, steps), []
    for chunk in torch.arange(n).split(batch_size or (250 if device == "cpu" else 2_500)):
        generators = [torch.Generator().manual_seed(seed * 1_000_000 + int(i)) for i in chunk]
        x_T = torch.stack(
            [torch.randn(net.channels, size, size, generator=g) for g in generators]
        ).to(device)
        eps_model = clip_x0(_labelled(net, None if y is None else y[chunk].to(device)), schedule)
        for step in tqdm(
            ddpm_sample(eps_model, x_T, times, schedule, generator=generators),
            total=steps,
            leave=False,
            desc="sampling",
        ):
            x = step.x
        parts.append(x.cpu())
    return torch.cat(parts)


def _labelled(net: torch.nn.Module, y: Tensor | None) -> EpsModel:
    return lambda x, t: net(x, t, y)


def sample(arguments: argparse.Namespace) -> None:
    """`sample NAME`."""
    from PIL import Image

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


def evaluate(arguments: argparse.Namespace) -> None:
    """`evaluate NAME`."""
    model = load_pretrained(arguments.name, arguments.weights)
    classifier, _, classifier_card = load_classifier()
    train_images, test_images = (
        load_images(model.card["data"]["name"], split, arguments.data)
        for split in ("train", "test")
    )
    _, test_features = classify(classifier, test_images.x)
    out = arguments.out or Path(f"{arguments.name}_evaluation.json")
    settings = {
        "weights_sha256": model.card["sha256"],
        "classifier_sha256": classifier_card["sha256"],
        "samples": arguments.samples,
        "steps": arguments.steps,
        "sampler": "ddpm_sample, variance='posterior', timesteps(1000, steps, 'trailing'), "
        "x_0 clipped to [-1, 1], no guidance",
        "labels": "of the training images drawn for the floor",
    }
    kept = json.loads(out.read_text()) if out.exists() else {}
    rows = kept["seeds"] if kept.get("settings") == settings else []
    for seed in range(len(rows), arguments.seeds):
        rows.append(_evaluate_seed(model, classifier, test_features, train_images, seed, arguments))
        report = {
            "settings": settings,
            **provenance(_evaluate_command(arguments), arguments.device),
            "seeds": rows,
        }
        report["data"] = data_card(model.card["data"]["name"], train_images)
        write_json(out, report | {"summary": _summary(rows)})
    for key, value in _summary(rows).items():
        print(f"{key:<24} {value['mean']:.4g} ± {value['std']:.2g} (n = {value['n']} seeds)")
    print(f"table: {out}")


def _evaluate_command(arguments: argparse.Namespace) -> str:
    flags = f"--samples {arguments.samples} --seeds {arguments.seeds} --steps {arguments.steps}"
    return f"python -m diffusion_core evaluate {arguments.name} {flags}"


def _evaluate_seed(
    model: Pretrained,
    classifier: Classifier,
    test_features: Tensor,
    real: Images,
    seed: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One row of the table: what n samples of this seed measure, beside n real images drawn at
    random, the floor; the samples are asked for with the labels of those images."""
    n = arguments.samples
    chosen = torch.randperm(len(real.pixels), generator=torch.Generator().manual_seed(seed))[:n]
    y = real.labels[chosen]
    began = time.perf_counter()
    x = generate(model, y, n, arguments.steps, seed, arguments.device)
    seconds = time.perf_counter() - began
    predicted, features = classify(classifier, x)
    _, real_features = classify(classifier, from_uint8(real.pixels[chosen]))
    held_out = load_images(model.card["data"]["name"], "test", arguments.data).x
    return {
        "seed": seed,
        "agreement": metrics.agreement(predicted, y),
        **_distances(features, real_features, test_features),
        "nearest": _nearest(x[:_NEAREST], real),
        "nearest_test_images": _nearest(held_out[seed * _NEAREST :][:_NEAREST], real),
        "seconds": round(seconds, 1),
    }


def _distances(features: Tensor, real_features: Tensor, test_features: Tensor) -> dict[str, float]:
    """Fréchet and kernel distance of samples to test images, and of real training images: the
    floor."""
    test = metrics.moments(test_features)
    return {
        "frechet": metrics.frechet_distance(metrics.moments(features), test),
        "frechet_floor": metrics.frechet_distance(metrics.moments(real_features), test),
        "kernel": metrics.kernel_distance(features, test_features),
        "kernel_floor": metrics.kernel_distance(real_features, test_features),
    }


def _nearest(x: Tensor, real: Images) -> float:
    """Median distance of images to the nearest real one."""
    distance, _ = metrics.nearest_neighbours(x, real.x)
    return distance.median().item()


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    keys = [key for key in rows[0] if key not in ("seed", "seconds")]
    if len(rows) < 2:
        return {key: {"mean": rows[0][key], "std": float("nan"), "n": 1} for key in keys}
    return {key: metrics.estimate([row[key] for row in rows])._asdict() for key in keys}
