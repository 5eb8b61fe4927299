"""The command line: what it writes, what it says, and how it fails."""

import argparse
import base64
import dataclasses
import functools
import json
import math

import pytest
import torch

from diffusion_core import commands
from diffusion_core.__main__ import build_parser, main
from diffusion_core.commands import parse_labels
from diffusion_core.data import load_images
from diffusion_core.evaluation import samples
from diffusion_core.exact import GaussianMixture
from diffusion_core.files import read_safetensors
from diffusion_core.likelihood import estimate_bound, vlb_terms
from diffusion_core.networks import UNet
from diffusion_core.pretrained import Pretrained, generate, load_pretrained, save_net
from diffusion_core.schedules import NoiseSchedule, linear_betas, make_schedule
from diffusion_core.training import RECIPES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps on the digits."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", "digits", "--steps", "6", "--batch-size", "8", "--runs", str(folder), "--device", "cpu"]) == 0
    return folder


def test_train_writes_weights_and_a_card_that_says_everything(run, capsys):
    model = load_pretrained("digits", run / "digits")
    card = model.card
    assert card["command"] == "python -m diffusion_core train digits --steps 6 --batch-size 8 --device cpu"
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
    arguments = ["train", "digits", "--steps", "6", "--batch-size", "8", "--runs", str(run), "--device", "cpu"]
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


def test_sample_saves_a_grid_and_says_where(run, tmp_path, capsys):
    from PIL import Image

    out = tmp_path / "new" / "grid.png"
    arguments = ["sample", "digits", "--weights", str(run / "digits"), "--steps", "3", "--out", str(out)]
    assert main([*arguments, "--labels", "0-2,7", "--each", "2"]) == 0
    assert capsys.readouterr().out.strip() == f"8 images: {out}"
    with Image.open(out) as image:
        assert image.size == (4 * 8 * 4, 2 * 8 * 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "imagenet"], "no recipe named 'imagenet'"),
        (["train", "digits", "--steps", "0"], "steps = 0 must be at least 1"),
        (["sample", "nothing"], "no weights named 'nothing'"),
        (["sample", "mnist", "--labels", "0-12"], "knows the labels 0-9"),
        (["sample", "mnist", "--labels", "x"], "cannot be read; write 0-9"),
        (["sample", "mnist", "--steps", "1001"], "S = 1001 steps"),
        (["evaluate", "nothing"], "no weights named 'nothing'"),
        (["sample", "mnist", "--each", "0"], "--each = 0 must be at least 1"),
        (["sample", "mnist", "--device", "banana"], "device = 'banana' is not available"),
        (["evaluate", "mnist", "--seeds", "0"], "--seeds = 0 must be at least 1"),
        (["evaluate", "mnist", "--samples", "1"], "--samples = 1 must be at least 2"),
        (["sample", "mnist", "--labels", "2-1"], "from the smaller label to the larger"),
        (["sample", "mnist", "--labels", "0-1-9"], "cannot be read"),
        (["sample", "mnist", "--out", "grid.pgn"], "'.pgn' is no kind of image file"),
        (["sample", "mnist", "--out", "grid"], "'' is no kind of image file"),
        (["sample", "mnist", "--seed", "-1"], "seed = -1 must be at least 0"),
        (["sample", "mnist", "--seed", "99999999999999"], "must be less than 2**32"),
        (["evaluate", "mnist", "--device", "banana"], "device = 'banana' is not available"),
        (["train", "digits", "--device", "banana"], "device = 'banana' is not available"),
        (["train", "mnist_classifier", "--steps", "3"], "takes no --steps"),
        (["train", "mnist_classifier", "--resume"], "takes no --resume"),
        (["train", "mnist_classifier", "--device", "cuda"], "is trained on the CPU"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_missing_data_says_where_it_was_looked_for(tmp_path, monkeypatch, capsys):
    import torchvision

    def offline(*arguments, download=False, **named):
        raise RuntimeError("no network" if download else "not found")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    assert main(["train", "mnist", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "DIFFUSION_DATA" in said


def test_help_names_every_recipe(capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["train", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for name in (*RECIPES, "mnist_classifier", "--resume", "accelerate launch"):
        assert name in said


def test_a_finished_classifier_of_another_seed_is_not_taken_for_this_one(tmp_path, capsys):
    (tmp_path / "mnist_classifier.json").write_text('{"seed": 0}', encoding="utf8")
    assert main(["train", "mnist_classifier", "--out", str(tmp_path)]) == 0
    assert "already trained" in capsys.readouterr().out
    assert main(["train", "mnist_classifier", "--out", str(tmp_path), "--seed", "5"]) == 2
    assert "was trained with --seed 0; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "labels"),
    [("0-3", [0, 1, 2, 3]), ("3,1,4", [3, 1, 4]), ("0-1,9", [0, 1, 9]), ("5", [5])],
)
def test_labels(text, labels):
    assert parse_labels(text, 10).tolist() == labels


def test_no_labels():
    assert parse_labels("none", None) is None
    assert parse_labels("none", 10) is None
    for text in ("0-10", "-1", ""):
        with pytest.raises(ValueError, match="--labels"):
            parse_labels(text, 10)
    with pytest.raises(ValueError, match="has no labels: use none"):
        parse_labels("1", None)


def _tiny(classes=3):
    torch.manual_seed(0)
    net = UNet(width=8, multipliers=(1,), attention=(False,), classes=classes).eval()
    torch.nn.init.normal_(net.conv_out.weight, std=0.1)
    return Pretrained(net, make_schedule("linear"), {"data": {"name": "digits"}})


def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in():
    model, y = _tiny(), torch.tensor([0, 1, 2, 0, 1])
    together = generate(model, y, 5, 4, 0, "cpu")
    apart = generate(model, y, 5, 4, 0, "cpu", batch_size=2)
    assert together.shape == (5, 1, 8, 8)
    assert (together - apart).abs().max() < 1e-5
    assert not torch.equal(together, generate(model, y, 5, 4, 1, "cpu"))
    assert not torch.equal(together[0], together[3])
    with pytest.raises(ValueError, match="5 labels for n = 4"):
        generate(model, y, 4, 4, 0, "cpu")


def test_evaluate_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """Two seeds in two calls give the file that one call gives, and the first seed is not computed again."""
    from diffusion_core.evaluation import Moments
    from diffusion_core.networks import Classifier

    torch.manual_seed(0)
    model = _tiny(classes=10)
    save_net(model.net, "tiny", {"schedule": "linear", "data": {"name": "digits"}}, tmp_path)
    judge = Classifier(width=8).eval()
    fake = (judge, {"test": Moments(torch.zeros(64), torch.eye(64), 2)}, {"sha256": "0", "data": {"name": "digits"}})
    monkeypatch.setattr(commands, "load_classifier", lambda: fake)
    calls = []
    evaluate_seed = samples.evaluate_seed
    monkeypatch.setattr(samples, "evaluate_seed", lambda *a: calls.append(a[2]) or evaluate_seed(*a))
    monkeypatch.setattr(samples, "estimate_bound", functools.partial(estimate_bound, strata=3))

    def call(seeds, out):
        arguments = ["evaluate", "tiny", "--weights", str(tmp_path), "--samples", "30", "--steps", "2"]
        assert main([*arguments, "--seeds", str(seeds), "--out", str(out)]) == 0
        return json.loads(out.read_text())

    first = call(1, tmp_path / "a.json")
    second = call(2, tmp_path / "a.json")
    whole = call(2, tmp_path / "b.json")
    assert calls == [0, 1, 0, 1]
    for row, same in zip(second["seeds"], whole["seeds"], strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in same.items() if k != "seconds"}
    assert first["seeds"][0] == second["seeds"][0]
    assert second["summary"]["frechet"]["n"] == 2
    assert second["summary"]["frechet"]["mean"] > second["summary"]["frechet_floor"]["mean"] > 0
    assert second["settings"]["samples"] == 30
    assert second["command"].endswith("evaluate tiny --samples 30 --seeds 2 --steps 2")
    assert "frechet" in capsys.readouterr().out
    assert load_pretrained("tiny", tmp_path).card["metrics"]["frechet"] == whole["summary"]["frechet"]
    assert first["summary"]["frechet"]["std"] is None, "one value has no spread, and NaN is no JSON"
    row = whole["seeds"][0]
    assert row["agreement"] == sum(a == b for a, b in zip(*row["labels"].values(), strict=True)) / 30
    data = load_images("digits", "train")
    found = row["neighbours"][0]
    assert base64.b64decode(found["pixels"]) == data.pixels[found["index"]].numpy().tobytes()
    assert row["nearest_0%"] <= min(n["distance"] for n in row["neighbours"]) + 1e-3
    assert row["nearest_0%"] < row["nearest_5%"] < row["nearest_50%"]
    with pytest.raises(AssertionError):
        call(2, tmp_path / "tiny.json")  # the card, not a table
    assert "is no table of evaluate, or damaged" in capsys.readouterr().err
    other = tmp_path / "other.json"
    for changed, message in (
        (whole | {"settings": whole["settings"] | {"steps": 3}}, "holds another evaluation (steps: 3 there, 2 here"),
        (whole | {"data": whole["data"] | {"sha256": "0"}}, "holds another evaluation (data: "),
        ([1, 2], "is no table of evaluate"),
    ):
        other.write_text(json.dumps(changed), encoding="utf8")
        with pytest.raises(AssertionError):
            call(2, other)
        assert message in capsys.readouterr().err
    other.write_text('{"settings":', encoding="utf8")
    with pytest.raises(AssertionError):
        call(2, other)
    assert "is no table of evaluate, or damaged" in capsys.readouterr().err


def test_a_judge_of_other_data_is_refused(run, tmp_path, capsys):
    arguments = ["evaluate", "digits", "--weights", str(run / "digits"), "--out", str(tmp_path / "a.json")]
    assert main(arguments) == 2
    assert "was trained on 'digits', but the classifier that judges it on 'mnist'" in capsys.readouterr().err


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
    arguments = ["train", "digits", "--steps", "6", "--batch-size", "8", "--runs", str(run), "--device", "cpu", "--resume"]
    assert main(arguments) == 0
    assert json.loads(path.read_text())["hardware"] == "elsewhere"


def test_the_bound_from_few_terms_is_the_whole_bound_on_average():
    schedule = NoiseSchedule.from_betas(linear_betas(40, 1e-3, 0.3))
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.tensor([0.3]))
    x_0 = data.sample(50, torch.Generator().manual_seed(0)).clamp(-1, 1)
    g = torch.Generator().manual_seed(1)
    model = data.eps_model(schedule)
    whole = torch.stack([vlb_terms(model, x_0, schedule, generator=g).sum(1).mean() for _ in range(10)])
    for strata, repeats in ((4, 60), (39, 10)):
        part = torch.stack([estimate_bound(model, x_0, schedule, strata, g).mean() for _ in range(repeats)])
        error = math.sqrt(part.var() / repeats + whole.var() / 10)
        assert abs(part.mean() - whole.mean()) < 4 * error, strata
        assert error < 0.1 * whole.mean(), strata
    with pytest.raises(ValueError, match=r"strata = 40 must be in 1\.\.T - 1 = 39"):
        estimate_bound(data.eps_model(schedule), x_0, schedule, 40)


def test_recipes_build():
    for recipe in RECIPES.values():
        net, schedule = recipe.build()
        assert schedule.T == 1000
        assert net.classes == 10
    with pytest.raises(ValueError, match="schedule = 'sigmoid' is unknown"):
        make_schedule("sigmoid")
    assert isinstance(build_parser(), argparse.ArgumentParser)


@pytest.mark.parametrize(("device", "said"), [("cpu", ""), ("cuda", " --device cuda")])
def test_the_stored_command_of_an_evaluation_names_the_device(device, said):
    arguments = build_parser().parse_args(["evaluate", "mnist", "--samples", "5", "--device", device])
    expected = "python -m diffusion_core evaluate mnist --samples 5 --seeds 3 --steps 50"
    assert commands._evaluate_command(arguments) == expected + said
