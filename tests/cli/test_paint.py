"""`paint`: the picture, the options, and what it refuses."""

import sys

import pytest
import torch
from PIL import Image

from diffusion_core.__main__ import main
from diffusion_core.cli import paint as command
from diffusion_core.networks import AutoencoderKL
from diffusion_core.text_to_image import build_pipeline, save_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a pipeline of fresh weights."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    net = AutoencoderKL((16, 16, 16), groups=8)
    save_pipeline(build_pipeline(net, 0.5, tmp_path_factory.mktemp("tokenizer")), folder)
    return str(folder)


def painted(model, out, *options, prompt="a red star"):
    arguments = ["paint", prompt, "--model", model, "--out", str(out), "--steps", "4", *options]
    assert main(arguments) == 0
    return out.read_bytes()


def test_one_picture(model, tmp_path, capsys):
    out = tmp_path / "new" / "star.png"
    painted(model, out)
    assert capsys.readouterr().out == f"1 picture: {out}\n"
    with Image.open(out) as image:
        assert image.size == (128, 128)


def test_several_pictures_in_rows_of_eight_each_with_its_seed(model, tmp_path, capsys):
    painted(model, tmp_path / "many.png", "--n", "9")
    assert capsys.readouterr().out.startswith("9 pictures: ")
    with Image.open(tmp_path / "many.png") as image:
        assert image.size == (8 * 128, 2 * 128)
        third = image.crop((2 * 128, 0, 3 * 128, 128)).tobytes()
        blank = image.crop((128, 128, 256, 256))
    assert blank.getextrema() == ((255, 255),) * 3
    painted(model, tmp_path / "one.png", "--seed", "2")
    with Image.open(tmp_path / "one.png") as image:
        alone = image.tobytes()
    assert max(abs(a - b) for a, b in zip(third, alone)) <= 1


def test_the_options_reach_the_pipeline(model, tmp_path):
    plain = painted(model, tmp_path / "a.png")
    assert plain == painted(model, tmp_path / "b.png")
    others = [
        painted(model, tmp_path / "c.png", *options)
        for options in (
            ["--seed", "1"],
            ["--guidance-scale", "6"],
            ["--negative-prompt", "a blue ring"],
            ["--scheduler", "dpm++"],
            ["--steps", "3"],
        )
    ]
    assert len({plain, *others}) == 6


def test_the_empty_prompt_paints_something(model, tmp_path):
    assert painted(model, tmp_path / "a.png", prompt="")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a crimson star"], "does not know 'crimson'. It knows: a an small large red"),
        (["a red star", "--negative-prompt", "ugly"], "does not know 'ugly'"),
        ([" ".join(["a"] * 30)], "the prompt has 32 tokens"),
        (["a red star", "--n", "0"], "--n = 0 must be at least 1"),
        (["a red star", "--steps", "0"], "--steps = 0 must be at least 1"),
        (["a red star", "--steps", "1001"], "steps = 1001 is more than the 1000"),
        (["a red star", "--seed", "-1"], "--seed -1 must be in 0.."),
        (["a red star", "--guidance-scale", "nan"], "--guidance-scale nan must be a finite"),
        (["a red star", "--device", "banana"], "device = 'banana' is not available"),
        (["a red star", "--out", "star.pgn"], "'.pgn' is no kind of image file"),
        (["a red star", "--out", "."], "is a folder; name a file in it"),
        (["a red star", "--model", "./nothing"], "this folder holds no pipeline"),
        (["a cat", "--model", "someone/something"], "no GPU here"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(
    model, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    named = [] if "--model" in arguments else ["--model", model]
    assert main(["paint", *arguments, *named]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["paint", "a red star", "--out", str(tmp_path / "a.png")]) == 2
    assert "pip install 'diffusion-core[text-to-image]'" in capsys.readouterr().err


def test_the_help_names_what_can_be_painted(capsys):
    with pytest.raises(SystemExit):
        main(["paint", "--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("purple", "ring", "to the left of", "small"))
    assert "cross" not in said


def test_the_shipped_model_is_the_default():
    assert command.POCKET.name == "pocket"
