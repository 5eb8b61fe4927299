"""What the benchmarks share: parts that are made once, and images with generators of their own."""

import base64

import pytest
import torch
from torch import nn

from benchmarks import painting
from benchmarks.painting import as_text, in_bf16, paint_scenes, starts
from benchmarks.parts import make_parts, stop_at
from diffusion_core.data import draw_scene, from_uint8
from diffusion_core.data.scenes import random_scene

FOREVER = float("inf")


def write(path, text="made"):
    with path.open("x") as file:  # fails if it is there
        file.write(text)


def fail(path):
    raise ValueError(path.stem)


@pytest.mark.parametrize("processes", [1, 2])
def test_parts_are_made_once(tmp_path, processes, capfd):
    first, second, third = (tmp_path / name for name in "abc")
    first.write_text("before")
    pieces = [(path, f"{path.stem} made") for path in (third, first, second, third)]
    make_parts(write, pieces, FOREVER, processes)
    make_parts(write, pieces, FOREVER, processes)
    assert [path.read_text() for path in (first, second, third)] == ["before", "b made", "c made"]
    assert sorted(capfd.readouterr().out.split()) == ["b", "c"]


def test_parts_are_made_in_their_order(tmp_path, capfd):
    make_parts(write, [(tmp_path / name,) for name in "cab"], FOREVER)
    assert capfd.readouterr().out.split() == ["c", "a", "b"]


def test_nothing_is_begun_when_it_is_too_late(tmp_path, capfd):
    make_parts(write, [(tmp_path / "a",)], stop_at("study", ["--seconds", "-1"]))
    assert not list(tmp_path.iterdir())
    assert not capfd.readouterr().out


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_part_is_seen(tmp_path, processes):
    with pytest.raises(ValueError, match="a"):
        make_parts(fail, [(tmp_path / "a",)], FOREVER, processes)


def test_without_the_option_it_never_stops(monkeypatch):
    monkeypatch.setattr("benchmarks.parts.time.time", lambda: 100.0)
    assert stop_at("study", []) == FOREVER
    assert stop_at("study", ["--seconds", "20"]) == 120.0


def test_an_image_starts_the_same_in_whatever_part_it_is_painted():
    x_T, generators = starts(2, range(3, 6))
    alone, (generator,) = starts(2, [4])
    assert x_T.shape == (3, 1, 28, 28)
    assert torch.equal(x_T[1:2], alone)
    assert torch.rand(1, generator=generators[1]) == torch.rand(1, generator=generator)
    own = torch.Generator().manual_seed(2_000_004)
    assert torch.equal(alone[0], torch.randn(1, 28, 28, generator=own))
    assert not torch.equal(starts(1, [4])[0], alone)


@pytest.mark.parametrize("on", [True, False])
def test_products_are_in_bfloat16_if_asked_and_the_answer_is_not(on):
    seen = []

    class Net(nn.Linear):
        def forward(self, x, t, *y):
            product = super().forward(x)
            seen.append((product.dtype, t, y))
            return product

    model = in_bf16(Net(2, 2), on)
    assert (
        model(torch.ones(1, 2), "t").dtype
        == model(torch.ones(1, 2), "t", "y").dtype
        == torch.float32
    )
    dtype = torch.bfloat16 if on else torch.float32
    assert seen == [(dtype, "t", ()), (dtype, "t", ("y",))]


def test_pixels_are_read_back():
    pixels = torch.randint(0, 256, (2, 1, 3, 3)).byte()
    raw = bytearray(base64.b64decode(as_text(pixels)))
    assert torch.equal(torch.frombuffer(raw, dtype=torch.uint8).view(2, 1, 3, 3), pixels)


def test_scenes_are_painted_by_their_captions_and_judged_each_by_its_own(monkeypatch):
    scenes, called = [random_scene(0, i) for i in range(3)], []

    def paint(*call, **how):
        called.append((*call, how))
        return torch.stack([from_uint8(draw_scene(scenes[i])) for i in (0, 2, 2)])

    monkeypatch.setattr(painting, "paint_prompts", paint)
    x, verdicts, seconds = paint_scenes("pipeline", scenes, [5, 6, 7], steps=3)
    assert called == [("pipeline", [scene.caption for scene in scenes], [5, 6, 7], {"steps": 3})]
    assert x.shape == (3, 3, 32, 32)
    assert [verdict.right for verdict in verdicts] == [True, False, True]
    assert 0 <= seconds < 60
