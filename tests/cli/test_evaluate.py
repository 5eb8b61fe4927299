"""`evaluate`: the table, how it goes on, and what it refuses."""

import base64
import functools
import json
import os

import pytest
import torch

from diffusion_core.__main__ import main
from diffusion_core.cli import build_parser
from diffusion_core.cli import evaluate as command
from diffusion_core.data import load_images
from diffusion_core.evaluation import samples
from diffusion_core.likelihood import estimate_bound
from diffusion_core.pretrained import WEIGHTS, load_pretrained, save_net
from tests.conftest import tiny


def test_evaluate_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """Two seeds in two calls give the file that one call gives, and the first seed is not computed again."""
    from diffusion_core.evaluation import Moments
    from diffusion_core.networks import Classifier

    torch.manual_seed(0)
    model = tiny(classes=10)
    save_net(model.net, "tiny", {"schedule": "linear", "data": {"name": "digits"}}, tmp_path)
    judge = Classifier(width=8).eval()
    fake = (
        judge,
        {"test": Moments(torch.zeros(64), torch.eye(64), 2)},
        {"sha256": "0", "data": {"name": "digits"}},
    )
    monkeypatch.setattr(command, "load_classifier", lambda: fake)
    calls = []
    evaluate_seed = samples.evaluate_seed
    monkeypatch.setattr(
        samples, "evaluate_seed", lambda *a: calls.append(a[2]) or evaluate_seed(*a)
    )
    monkeypatch.setattr(samples, "estimate_bound", functools.partial(estimate_bound, strata=3))

    def call(seeds, out):
        arguments = [
            "evaluate",
            "tiny",
            "--weights",
            str(tmp_path),
            "--samples",
            "30",
            "--steps",
            "2",
        ]
        assert main([*arguments, "--seeds", str(seeds), "--out", str(out)]) == 0
        return json.loads(out.read_text())

    first = call(1, tmp_path / "a.json")
    second = call(2, tmp_path / "a.json")
    whole = call(2, tmp_path / "b.json")
    assert calls == [0, 1, 0, 1]
    for row, same in zip(second["seeds"], whole["seeds"], strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in same.items() if k != "seconds"
        }
    assert first["seeds"][0] == second["seeds"][0]
    assert second["summary"]["frechet"]["n"] == 2
    assert second["summary"]["frechet"]["mean"] > second["summary"]["frechet_floor"]["mean"] > 0
    assert second["settings"]["samples"] == 30
    assert second["command"].endswith("evaluate tiny --samples 30 --seeds 2 --steps 2")
    assert "frechet" in capsys.readouterr().out
    assert (
        load_pretrained("tiny", tmp_path).card["metrics"]["frechet"] == whole["summary"]["frechet"]
    )
    assert first["summary"]["frechet"]["std"] is None, "one value has no spread, and NaN is no JSON"
    row = whole["seeds"][0]
    assert (
        row["agreement"] == sum(a == b for a, b in zip(*row["labels"].values(), strict=True)) / 30
    )
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
        (
            whole | {"settings": whole["settings"] | {"steps": 3}},
            "holds another evaluation (steps: 3 there, 2 here",
        ),
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
    arguments = [
        "evaluate",
        "digits",
        "--weights",
        str(run / "digits"),
        "--out",
        str(tmp_path / "a.json"),
    ]
    assert main(arguments) == 2
    assert (
        "was trained on 'digits', but the classifier that judges it on 'mnist'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ""),
        (["--device", "cuda"], " --device cuda"),
        (["--sampler", "ddim"], " --sampler ddim"),
        (["--sampler", "ddim", "--eta", "0.5"], " --sampler ddim --eta 0.5"),
        (["--sampler", "ddpm", "--guidance", "2"], " --guidance 2.0"),
    ],
)
def test_the_stored_command_of_an_evaluation_names_what_is_not_the_default(options, said):
    arguments = vars(build_parser().parse_args(["evaluate", "mnist", "--samples", "5", *options]))
    for not_stored in ("command", "run", "data", "weights", "out"):
        arguments.pop(not_stored)
    expected = "python -m diffusion_core evaluate mnist --samples 5 --seeds 3 --steps 50"
    assert command._command(**arguments) == expected + said


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The table that ships, and a command line that finds its data without having it and refuses
    to paint."""
    table = json.loads((WEIGHTS / "mnist_evaluation.json").read_text())
    few = load_images("digits", "test")
    many = few._replace(
        pixels=few.pixels[:1].expand(2000, 1, 8, 8), labels=few.labels[:1].expand(2000)
    )

    def never(*arguments):
        raise AssertionError("a seed was painted")

    monkeypatch.setattr(command, "load_images", lambda name, split, folder: many)
    monkeypatch.setattr(command, "data_card", lambda name, data: table["data"])
    monkeypatch.setattr(command, "classify", lambda *arguments: (None, None))
    monkeypatch.setattr(samples, "evaluate_seed", never)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    return path


def test_a_stored_table_is_recognised(stored, capsys):
    """Its three seeds are there, so nothing is painted."""
    before = stored.read_bytes()
    assert main(["evaluate", "mnist", "--samples", "2000", "--out", str(stored)]) == 0
    assert "agreement                0.9732 ± 0.00058 (n = 3 seeds)" in capsys.readouterr().out
    assert stored.read_bytes() == before


@pytest.mark.parametrize("options", [["--sampler", "ddim"], ["--guidance", "1"], ["--steps", "20"]])
def test_a_table_of_another_sampler_is_not_taken_for_this_one(options, stored, capsys):
    assert main(["evaluate", "mnist", "--samples", "2000", "--out", str(stored), *options]) == 2
    assert (
        f"holds another evaluation ({'steps' if '20' in options else 'sampler'}: "
        in capsys.readouterr().err
    )


def test_the_sampler_in_words():
    model = tiny()
    assert command._in_words(model, "ddim", None, 2.5) == (
        "ddim_sample, eta=0.0, timesteps(1000, steps, 'trailing'), x_0 clipped to [-1, 1], "
        "classifier-free guidance, scale 2.5"
    )
    assert "ddim_sample, eta=0.5, " in command._in_words(model, "ddim", 0.5, None)


@pytest.mark.parametrize("wrong", ["file", "not writable", "card"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    wrong, tmp_path, monkeypatch, capsys
):
    def never(*arguments, **named):
        raise AssertionError("it was loaded first")

    place = tmp_path / "there"
    monkeypatch.setattr(command, "load_for_sampling", never)
    if wrong == "file":
        place.write_text("a file")
    else:
        place.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: path != place)
    arguments = ["evaluate", "mnist", "--out", str(place / "a.json")]
    if wrong == "card":
        arguments = [
            "evaluate",
            "mnist",
            "--out",
            str(tmp_path / "a.json"),
            "--weights",
            str(place),
        ]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {'--weights' if wrong == 'card' else '--out'} {place}: ")


def test_ctrl_c_says_how_many_seeds_are_kept(stored, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "evaluate_seed", stopped)
    assert (
        main(["evaluate", "mnist", "--samples", "2000", "--seeds", "5", "--out", str(stored)])
        == 130
    )
    assert (
        capsys.readouterr().err == "stopped: 3 of 5 seeds are finished; the same command goes on\n"
    )
