"""The recipe of the judge, `train mnist_classifier`, and what is stored of it."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusion_core._validate import UsageError
from diffusion_core.cli.provenance import data_card, provenance
from diffusion_core.data import Images, Name, load_images
from diffusion_core.evaluation import metrics, save_moments
from diffusion_core.files import sha256
from diffusion_core.networks import Classifier, classify
from diffusion_core.pretrained import save_net
from diffusion_core.training import train_classifier


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier's training depends on besides the data.

    Raises: UsageError naming the field that is out of range.
    """

    epochs: int = 6
    batch_size: int = 128
    lr: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fine, right in (
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "above 0 and finite"),
            ("seed", 0 <= self.seed < 2**32, "in 0..2**32 - 1"),
        ):
            if not fine:
                raise UsageError(f"{name} = {getattr(self, name)} must be {right}")


@dataclass(frozen=True)
class ClassifierRecipe:
    """One classifier: trained in one piece, on the CPU."""

    about: str
    data: Name
    config: ClassifierConfig
    licence: str = "MIT"


CLASSIFIERS = {
    "mnist_classifier": ClassifierRecipe(
        about="the judge: labels and features for `evaluate`; in one piece, on the CPU, 10 minutes",
        data="mnist",
        config=ClassifierConfig(),
    )
}


def train_judge(
    name: str, config: ClassifierConfig, folder: str | None, command: str, card: Path
) -> None:
    """Train a classifier and store it: the weights, the moments of its features over the real
    images, and the card.

    Raises: UsageError if a batch is larger than the data; as load_images; OSError.
    """
    recipe = CLASSIFIERS[name]
    data, test = (load_images(recipe.data, split, folder) for split in ("train", "test"))
    steps = config.epochs * (len(data.pixels) // config.batch_size)
    if steps == 0:
        raise UsageError(f"batch_size = {config.batch_size} is more than {len(data.pixels)} images")
    began = time.perf_counter()
    with tqdm(total=steps, unit="step", desc=name) as bar:
        net = train_classifier(
            data,
            **dataclasses.asdict(config),
            on_step=lambda step, loss: bar.update(step - bar.n),
        )
    seconds = time.perf_counter() - began
    run = {
        "config": dataclasses.asdict(config),
        "seed": config.seed,
        "epochs": config.epochs,
        "steps": steps,
        "images_per_s": round(steps * config.batch_size / seconds, 1),
        "seconds": round(seconds, 1),
    }
    store_classifier(name, net, data, test, command, run, card.parent)


def store_classifier(
    name: str,
    net: Classifier,
    data: Images,
    test: Images,
    command: str,
    run: dict[str, Any],
    folder: Path,
) -> None:
    """Write the classifier, the moments of its features over the real images, and its card, which
    says of the run what `run` does."""
    recipe = CLASSIFIERS[name]
    predicted, test_features = classify(net, test.x)
    _, train_features = classify(net, data.x)
    accuracy, n = metrics.agreement(predicted, test.labels), len(test.labels)
    moments = {"train": metrics.moments(train_features), "test": metrics.moments(test_features)}
    stored = save_moments(name, moments, folder)
    card = {
        "about": recipe.about,
        **provenance(command, "cpu"),
        "data": data_card(recipe.data, data),
        **run,
        "metrics": {
            "test_accuracy": accuracy,
            "standard_error": math.sqrt(accuracy * (1 - accuracy) / n),
            "n": n,
        },
        "moments_sha256": sha256(stored),
        "licence": recipe.licence,
    }
    print(f"test accuracy {accuracy:.4f}")
    save_net(net, name, card, folder)
