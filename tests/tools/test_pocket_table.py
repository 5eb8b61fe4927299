"""The table of the pocket model: what is measured, in parts, and summed up."""

import json

import pytest

from benchmarks import painting, pocket_table
from benchmarks.pocket_table import Row, best_scale, main
from diffusion_core.data import draw_scene, from_uint8
from diffusion_core.text_to_image import held_out, is_new


@pytest.fixture
def painter(monkeypatch, tmp_path):
    """Draws what is asked for in place of painting it, and wrongly at guidance 1 and at seed 1."""
    import torch

    calls = []

    def paint(pipeline, prompts, seeds, *, guidance_scale, **named):
        calls.append((list(prompts), list(seeds), named | {"guidance_scale": guidance_scale}))
        known = {
            scene.caption: scene
            for things in (1, 2)
            for seed, held in ((101, False), (101, True), (102, None))
            for scene in pocket_table.scenes(seed, things, held, 3)
        }
        x = torch.stack([from_uint8(draw_scene(known[prompt])) for prompt in prompts])
        wrong = guidance_scale == 1.0 or (seeds[0] // 1_000_000 == 1 and len(prompts) > 1)
        return x.flip(1) if wrong else x

    unet = tmp_path / "model" / "unet"
    unet.mkdir(parents=True)
    (unet / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(painting, "paint_prompts", paint)
    monkeypatch.setattr(pocket_table, "pipeline_of", lambda model: None)
    monkeypatch.setattr(pocket_table, "PART", 2)
    return calls


def measure(tmp_path, *options):
    out = tmp_path / "table.json"
    paths = ["--model", tmp_path / "model", "--parts", tmp_path / "parts", "--out", out]
    main([*map(str, paths), "--prompts", "3", "--small", "3", "--processes", "1", *options])
    return json.loads(out.read_text())


def test_a_small_table(painter, tmp_path, capsys):
    table = measure(tmp_path)
    assert table["guidance_scale"] == 1.5  # the smallest of those that are right
    assert len(table["guidance"]) == 12 and len(table["rows"]) == 12
    assert len(table["schedulers"]) == 24
    assert "48 of 48 rows are whole" in capsys.readouterr().out
    assert table["command"] == "python -m benchmarks.pocket_table --prompts 3 --small 3"
    for row in table["accuracy"]:
        assert row["n"] == 3
        assert 0.6 < row["right"]["mean"] < 1 and row["right"]["std"] > 0
    wrong = [row for row in table["guidance"] if row["gamma"] == 1.0]
    assert all(row["wrong"] and row["evaluations"] == 25 for row in wrong)
    assert {row["evaluations"] for row in table["schedulers"]} == {10, 20, 50}


def test_a_stopped_run_goes_on(painter, tmp_path):
    table = measure(tmp_path, "--seconds", "-1")
    assert not table["rows"] and table["guidance_scale"] is None and not painter
    whole = measure(tmp_path)
    painter.clear()
    assert measure(tmp_path)["rows"] == whole["rows"]
    assert not painter


def test_every_picture_has_a_seed_of_its_own_and_other_weights_other_parts(painter, tmp_path):
    measure(tmp_path)
    for prompts, seeds, _ in painter:
        assert len(set(seeds)) == len(prompts)
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"others")
    painter.clear()
    measure(tmp_path)
    assert painter


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("things", [1, 2])
def test_prompts_are_of_the_kind_that_is_said(things, held):
    for scene in pocket_table.scenes(pocket_table.SCENES, things, held, 20):
        assert len(scene.things) == things and held_out(scene) == held and not is_new(scene)


def test_the_best_scale_is_not_known_before_all_are_measured():
    assert best_scale([{"gamma": 1.0, "right": 1.0}]) is None


def test_the_price_of_a_row():
    row = Row(1, True, 2.0, 25, "ddim", 0, 101, 10)
    assert row.evaluations == 50
    assert Row(1, True, 1.0, 25, "ddim", 0, 101, 10).evaluations == 25
