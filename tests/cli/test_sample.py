"""`sample`: the picture, the labels, and what it refuses."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core.__main__ import main
from diffusion_core.cli import sample as command
from diffusion_core.cli.pictures import grid_of
from diffusion_core.cli.sample import parse_labels
from diffusion_core.data import to_uint8


def test_sample_saves_a_grid_and_says_where(run, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    arguments = [
        "sample",
        "digits",
        "--weights",
        str(run / "digits"),
        "--steps",
        "3",
        "--out",
        str(out),
    ]
    assert main([*arguments, "--labels", "0-2,7", "--each", "2"]) == 0
    assert capsys.readouterr().out.strip() == f"8 images: {out}"
    with Image.open(out) as image:
        assert image.size == (4 * 8 * 4, 2 * 8 * 4)


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


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_has_a_column_for_each_label(channels):
    x = torch.rand(6, channels, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = np.asarray(grid_of(x, columns=3))
    assert picture.shape[:2] == (2 * 5 * 4, 3 * 4 * 4)
    for i, pixels in enumerate(to_uint8(x).permute(0, 2, 3, 1).squeeze(-1).numpy()):
        row, column = divmod(i, 3)
        part = picture[row * 20 : (row + 1) * 20, column * 16 : (column + 1) * 16]
        assert (part == pixels.repeat(4, axis=0).repeat(4, axis=1)).all()


def test_the_options_reach_the_sampler(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        command,
        "generate",
        lambda *a, **k: calls.append((a[2:], k)) or torch.zeros(a[2], 1, 28, 28),
    )
    out = ["--out", str(tmp_path / "a.png")]
    assert main(["sample", "mnist", *out]) == 0
    assert (
        main(
            [
                "sample",
                "mnist",
                *out,
                "--sampler",
                "ddim",
                "--eta",
                "0.5",
                "--guidance",
                "3",
                "--steps",
                "7",
                "--seed",
                "4",
            ]
        )
        == 0
    )
    assert calls == [
        ((10, 100, 0, "cpu"), {"sampler": "ddpm", "eta": None, "guidance_scale": None}),
        ((10, 7, 4, "cpu"), {"sampler": "ddim", "eta": 0.5, "guidance_scale": 3.0}),
    ]


def test_ddim_with_guidance_draws_another_picture(run, tmp_path):
    def picture(*options):
        out = tmp_path / "a.png"
        assert (
            main(
                [
                    "sample",
                    "digits",
                    "--weights",
                    str(run / "digits"),
                    "--steps",
                    "2",
                    "--out",
                    str(out),
                    *options,
                ]
            )
            == 0
        )
        return out.read_bytes()

    ddim = ["--sampler", "ddim"]
    pictures = [
        picture(),
        picture(*ddim),
        picture(*ddim, "--eta", "0.5"),
        picture(*ddim, "--guidance", "9"),
    ]
    assert len(set(pictures)) == 4
    assert picture(*ddim, "--eta", "0") == pictures[1]
    assert picture(*ddim, "--guidance", "1") == pictures[1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "pdf"])
def test_what_can_be_written_is_written(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "generate", lambda *a, **k: torch.zeros(a[2], 1, 28, 28))
    out = tmp_path / f"grid.{suffix}"
    assert main(["sample", "mnist", "--out", str(out)]) == 0
    assert out.stat().st_size > 100
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("wrong", ["file", "not writable"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    wrong, tmp_path, monkeypatch, capsys
):
    def never(*arguments, **named):
        raise AssertionError("it was painted first")

    place = tmp_path / "there"
    if wrong == "file":
        place.write_text("a file")
    else:
        place.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: path != place)
    monkeypatch.setattr(command, "generate", never)
    assert main(["sample", "mnist", "--out", str(place / "grid.png")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {place}: ")


def test_a_run_that_was_stopped_is_to_be_resumed(run, tmp_path, capsys):
    shutil.copy(run / "digits" / "checkpoint.safetensors", tmp_path)
    assert main(["sample", "digits", "--weights", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} holds a run at step 6, but no weights" in said
    assert "--resume" in said
    assert (
        main(["evaluate", "digits", "--weights", str(tmp_path), "--out", str(tmp_path / "a.json")])
        == 2
    )
    assert "--resume" in capsys.readouterr().err
