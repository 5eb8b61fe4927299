"""`train`: what it stores, what it refuses, and how it is stopped and resumed."""

import dataclasses
import json
import os
import shutil

import pytest
import torch

from diffusion_core import cli
from diffusion_core.__main__ import main
from diffusion_core.cli.classifier import CLASSIFIERS, ClassifierConfig, ClassifierRecipe
from diffusion_core.evaluation import load_classifier
from diffusion_core.files import read_safetensors
from diffusion_core.pretrained import load_pretrained
from diffusion_core.training import RECIPES


def test_train_writes_weights_and_a_card_that_says_everything(run, capsys):
    model = load_pretrained("digits", run / "digits")
    card = model.card
    assert (
        card["command"]
        == "python -m diffusion_core train digits --steps 6 --batch-size 8 --device cpu"
    )
    assert card["config"]["precision"] == "fp32", "never auto: a card says what was done"
    assert card["steps"] == 6
    assert card["config"]["batch_size"] == 8
    assert card["data"]["name"] == "digits"
    assert card["data"]["images"] == 1497
    assert len(card["data"]["sha256"]) == 64
    assert card["history"][-1]["step"] == 6
    assert len(card["history"][-1]["loss_by_t"]) == 10
    for key in ("seed", "hardware", "torch", "seconds", "images_per_s", "licence", "date"):
        assert card[key] not in (None, "")


def test_train_does_not_overwrite_a_run(run, capsys):
    arguments = [
        "train",
        "digits",
        "--steps",
        "6",
        "--batch-size",
        "8",
        "--runs",
        str(run),
        "--device",
        "cpu",
    ]
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert "weights and card:" in capsys.readouterr().out.strip().split("\n")[-1]


def test_weights_are_stored_as_the_recipe_says(tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPES["digits"], stored_as=torch.float16)
    monkeypatch.setitem(RECIPES, "digits", recipe)
    arguments = ["train", "digits", "--steps", "1", "--batch-size", "8", "--runs", str(tmp_path)]
    assert main([*arguments, "--device", "cpu"]) == 0
    stored, _ = read_safetensors(tmp_path / "digits" / "digits.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert load_pretrained("digits", tmp_path / "digits").card["net"]["stored_as"] == "float16"


def test_missing_data_says_where_it_was_looked_for(tmp_path, monkeypatch, capsys):
    import torchvision

    def offline(*arguments, download=False, **named):
        raise RuntimeError("no network" if download else "Dataset not found.")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    assert main(["train", "mnist", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "DIFFUSION_DATA" in said


def test_a_finished_classifier_of_another_seed_is_not_taken_for_this_one(tmp_path, capsys):
    (tmp_path / "mnist_classifier.json").write_text('{"seed": 0}', encoding="utf8")
    assert main(["train", "mnist_classifier", "--out", str(tmp_path)]) == 0
    assert "already trained" in capsys.readouterr().out
    assert main(["train", "mnist_classifier", "--out", str(tmp_path), "--seed", "5"]) == 2
    assert "was trained with seed = 0, not 5; choose another --out" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(run, tmp_path, capsys):
    path = tmp_path / "digits" / "checkpoint.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"not a checkpoint, but long enough to be one")
    assert main(["train", "digits", "--runs", str(tmp_path), "--resume", "--device", "cpu"]) == 2
    assert "truncated or not a safetensors file" in capsys.readouterr().err


def test_a_finished_run_keeps_its_card(run, capsys):
    """Its day and its machine are those of the training, not of the second call."""
    path = run / "digits" / "digits.json"
    card = json.loads(path.read_text()) | {"hardware": "elsewhere"}
    path.write_text(json.dumps(card))
    arguments = [
        "train",
        "digits",
        "--steps",
        "6",
        "--batch-size",
        "8",
        "--runs",
        str(run),
        "--device",
        "cpu",
        "--resume",
    ]
    assert main(arguments) == 0
    assert json.loads(path.read_text())["hardware"] == "elsewhere"


SHORT = ["--steps", "3", "--batch-size", "8", "--device", "cpu"]


def test_lr_and_grad_clip_reach_the_run_and_the_card(tmp_path):
    arguments = ["train", "digits", *SHORT, "--lr", "0.01", "--grad-clip", "0.5", "--seed", "3"]
    assert main([*arguments, "--runs", str(tmp_path)]) == 0
    card = load_pretrained("digits", tmp_path / "digits").card
    asked = {"steps": 3, "batch_size": 8, "lr": 0.01, "grad_clip": 0.5, "seed": 3}
    assert asked.items() <= card["config"].items()
    assert card["command"] == (
        "python -m diffusion_core train digits --steps 3 --batch-size 8 --lr 0.01 --grad-clip 0.5 --seed 3 --device cpu"
    )


@pytest.mark.parametrize("change", [["--seed", "1"], ["--lr", "0.5"], ["--steps", "2"]])
def test_weights_of_another_run_are_not_overwritten(change, run, tmp_path, monkeypatch, capsys):
    """Not even by a run of its own folder that has only the place of its weights in common; and it
    is said before any work."""
    out = tmp_path / "out"
    shutil.copytree(run / "digits", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(cli.train, "load_images", _never)
    arguments = ["train", "digits", "--steps", "6", "--batch-size", "8", "--device", "cpu", *change]
    assert main([*arguments, "--runs", str(tmp_path / "runs"), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"was trained with {change[0].removeprefix('--')} = " in said
    assert f"not {change[1]}; choose another --out" in said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_there_are_not_trained_again(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    shutil.copytree(run / "digits", out)
    monkeypatch.setattr(cli.train, "load_images", _never)
    arguments = ["train", "digits", "--steps", "6", "--batch-size", "8", "--device", "cpu"]
    assert main([*arguments, "--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == (
        f"already trained, nothing was done\nweights and card: {out / 'digits.safetensors'} and {out / 'digits.json'}\n"
    )


@pytest.mark.parametrize("text", ["[1]", "{", "7"])
def test_a_file_that_is_no_card_is_not_overwritten(text, tmp_path, capsys):
    (tmp_path / "digits.json").write_text(text)
    assert (
        main(["train", "digits", *SHORT, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
        == 2
    )
    assert "is in the way, and no card" in capsys.readouterr().err
    assert (tmp_path / "digits.json").read_text() == text


@pytest.mark.parametrize("option", ["--runs", "--out"])
@pytest.mark.parametrize("wrong", ["file", "below a file", "not writable"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    option, wrong, tmp_path, monkeypatch, capsys
):
    place = tmp_path / "there"
    if wrong == "not writable":
        place.mkdir()
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != place and access(path, mode))
    else:
        place.write_text("a file")
    monkeypatch.setattr(cli.train, "load_images", _never)
    monkeypatch.chdir(tmp_path)
    named = place / "below" if wrong == "below a file" else place
    assert main(["train", "digits", *SHORT, option, str(named)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {option} {named}")
    assert str(place) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_run_goes_on_only_as_it_began(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "runs")
    out = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--resume"]
    assert (
        main(
            [
                "train",
                "digits",
                "--steps",
                "6",
                "--batch-size",
                "8",
                "--device",
                "cpu",
                "--lr",
                "0.5",
                *out,
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert "belongs to a run with another configuration (lr: 0.002 there, 0.5 here)" in said
    assert said.count("error: ") == 1


def test_there_must_be_something_to_resume(tmp_path, capsys):
    """A slip in --runs is no reason to train from step 0."""
    arguments = ["train", "digits", *SHORT, "--runs", str(tmp_path / "rnus"), "--resume"]
    assert main(arguments) == 2
    checkpoint = tmp_path / "rnus" / "digits" / "checkpoint.safetensors"
    assert (
        f"there is no {checkpoint}; to start at step 0, leave --resume out"
        in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_what_is_kept(run, tmp_path, monkeypatch, capsys):
    def stopped(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.train, "train_net", stopped)
    arguments = ["train", "digits", "--steps", "6", "--batch-size", "8", "--device", "cpu"]
    assert main([*arguments, "--runs", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("stopped: nothing was stored yet\n")
    assert main([*arguments, "--runs", str(run), "--resume"]) == 130
    checkpoint = run / "digits" / "checkpoint.safetensors"
    said = f"stopped: {checkpoint} holds step 6; the same command with --resume goes on\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_classifier_is_a_recipe_like_the_others(tmp_path, monkeypatch, capsys):
    recipe = ClassifierRecipe(
        "a judge of digits", "digits", ClassifierConfig(epochs=1, batch_size=64)
    )
    monkeypatch.setitem(CLASSIFIERS, "judge", recipe)
    arguments = ["train", "judge", "--runs", str(tmp_path), "--lr", "0.001", "--batch-size", "100"]
    assert main(arguments) == 0
    _, moments, card = load_classifier("judge", tmp_path / "judge")
    assert card["config"] == {"epochs": 1, "batch_size": 100, "lr": 0.001, "seed": 0}
    assert card["command"] == "python -m diffusion_core train judge --batch-size 100 --lr 0.001"
    assert card["steps"] == 14
    assert {split: m.n for split, m in moments.items()} == {"train": 1497, "test": 300}
    assert "weights and card: " in capsys.readouterr().out
    before = (tmp_path / "judge" / "judge.safetensors").read_bytes()
    assert main(arguments) == 0
    assert "already trained" in capsys.readouterr().out
    assert main([*arguments, "--seed", "1"]) == 2
    assert "was trained with seed = 0, not 1" in capsys.readouterr().err
    assert (tmp_path / "judge" / "judge.safetensors").read_bytes() == before
    assert main(["train", "judge", "--runs", str(tmp_path / "new"), "--batch-size", "1498"]) == 2
    assert "batch_size = 1498 is more than 1497 images" in capsys.readouterr().err


def test_the_shipped_classifier_is_that_of_the_recipe():
    card = load_classifier()[2]
    assert CLASSIFIERS["mnist_classifier"].config == ClassifierConfig(
        epochs=card["epochs"], seed=card["seed"]
    )
    assert card["data"]["name"] == CLASSIFIERS["mnist_classifier"].data


def _never(*arguments, **named):
    raise AssertionError("the error came after the work had begun")
