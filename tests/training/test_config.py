"""The configuration of a run: its limits, the learning rate, the precision that the hardware suggests."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from diffusion_core.training import (
    TrainConfig,
    generator_of_step,
    lr_at,
    resolve_precision,
    run_settings,
)
from diffusion_core.training import config as settings_of
from tests.training.small import SCHEDULE, config, images


def test_lr_at_by_its_formula():
    conf = config(steps=10, lr=2.0, warmup=4)
    half = [(1 + math.cos(math.pi * k / 10)) / 2 for k in range(10)]
    warm = [0.25, 0.5, 0.75] + [1.0] * 7
    expected = [2 * w * h for w, h in zip(warm, half, strict=True)]
    assert [lr_at(k, conf) for k in range(10)] == pytest.approx(expected, rel=1e-12)


def test_lr_at_starts_above_0_and_ends_near_0():
    conf = config(steps=1000, lr=1.0, warmup=0)
    assert lr_at(0, conf) == 1.0
    assert lr_at(500, conf) == pytest.approx(0.5)
    assert 0 < lr_at(999, conf) < 1e-5
    assert all(lr_at(k, conf) > lr_at(k + 1, conf) for k in range(999))


@pytest.mark.parametrize("seed", [0, 3, 4293])
@pytest.mark.parametrize("k", [0, 5, 1_000_002])
def test_the_generator_of_a_step_stays_what_it_is(seed, k):
    """Another formula would make a resumed run see other batches than the run that was stopped."""
    expected = torch.Generator().manual_seed(seed * 1_000_003 + k)
    assert torch.equal(generator_of_step(seed, k).get_state(), expected.get_state())


def test_no_step_draws_what_another_draws():
    """Neighbours of seed and step, and those at the ends of what the docstring promises."""
    pairs = [(seed, k) for seed in (0, 1, 2, 4292, 4293) for k in (0, 1, 2, 1_000_001, 1_000_002)]
    drawn = {tuple(torch.rand(4, generator=generator_of_step(*pair)).tolist()) for pair in pairs}
    assert len(drawn) == len(pairs)


@pytest.mark.parametrize("avx512", [True, False, None])
@pytest.mark.parametrize("amx", [True, False])
def test_either_unit_of_the_processor_is_enough(monkeypatch, avx512, amx):
    """None: a version of torch that cannot say whether there is AVX-512 for bfloat16."""
    name = "_is_avx512_bf16_supported"
    if avx512 is None:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    else:
        monkeypatch.setattr(torch.cpu, name, lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert settings_of._cpu_has_bf16_units() == (bool(avx512) or amx)


@pytest.mark.parametrize("missing", ["mkldnn", "its bfloat16", "the units", None])
def test_bf16_needs_library_and_processor(monkeypatch, missing):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: missing != "mkldnn")
    supported = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: missing != "its bfloat16")
    monkeypatch.setattr(torch.ops, "mkldnn", supported)
    monkeypatch.setattr(settings_of, "_cpu_has_bf16_units", lambda: missing != "the units")
    assert settings_of._has_bf16("cpu") == (missing is None)


def test_the_hashes_of_data_and_schedule_stay_what_they_are():
    """Checkpoints of yesterday are resumed with them."""
    settings = run_settings(config(), images(), SCHEDULE)
    assert settings.items() >= dataclasses.asdict(config()).items()
    assert (settings["data"], settings["schedule"]) == ("13f97f26e1e15efd", "5643f67c66a605ba")


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("lr", 0.0, "above 0 and finite"),
        ("lr", -1e-3, "above 0 and finite"),
        ("lr", math.inf, "above 0 and finite"),
        ("lr", math.nan, "above 0 and finite"),
        ("warmup", -1, "at least 0"),
        ("betas", (0.9, 1.0), r"two numbers in \[0, 1\)"),
        ("betas", (-0.1, 0.9), r"two numbers in \[0, 1\)"),
        ("betas", (0.9,), r"two numbers in \[0, 1\)"),
        ("grad_clip", 0.0, "above 0"),
        ("ema_decay", 1.0, r"in \[0, 1\)"),
        ("ema_decay", -0.1, r"in \[0, 1\)"),
        ("label_dropout", -0.1, r"in \[0, 1\]"),
        ("label_dropout", 1.1, r"in \[0, 1\]"),
        ("p2_gamma", -0.1, "at least 0 and finite"),
        ("p2_gamma", math.inf, "at least 0 and finite"),
        ("p2_gamma", math.nan, "at least 0 and finite"),
        ("precision", "fp16", r"one of \('auto', 'bf16', 'fp32'\)"),
        ("log_every", 0, "at least 1"),
        ("validate_every", 0, "at least 1"),
        ("checkpoint_every", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**32, r"below 2\*\*32"),
    ],
)
def test_a_configuration_out_of_range_is_named(field, value, right):
    with pytest.raises(ValueError, match=rf"{field} = .* must be {right}"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    "field",
    ["steps", "batch_size", "warmup", "seed", "log_every", "validate_every", "checkpoint_every"],
)
def test_what_is_counted_is_whole(field):
    assert TrainConfig(seed=4_294_967_295).seed == 4_294_967_295
    with pytest.raises(TypeError, match=rf"{field} = 2\.5 is float, expected int"):
        TrainConfig(**{field: 2.5})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 1),
        ("batch_size", 1),
        ("warmup", 0),
        ("ema_decay", 0.0),
        ("label_dropout", 0.0),
        ("label_dropout", 1.0),
        ("p2_gamma", 0.0),
        ("betas", (0.0, 0.0)),
        ("log_every", 1),
        ("validate_every", 1),
        ("checkpoint_every", 1),
        ("precision", "bf16"),
    ],
)
def test_the_edges_of_the_configuration_are_allowed(field, value):
    assert getattr(TrainConfig(**{field: value}), field) == value


def test_bf16_is_asked_for_only_where_there_are_units_for_it(monkeypatch):
    monkeypatch.setattr(settings_of, "_has_bf16", lambda device: device == "cpu")
    assert resolve_precision("auto", "cpu") == "bf16"
    assert resolve_precision("auto") == "fp32"
    assert resolve_precision("bf16") == "bf16"
    assert resolve_precision("fp32", "cpu") == "fp32"


def test_units_for_bf16_are_looked_for_where_the_run_will_be(monkeypatch):
    asked = []

    def on_gpu(including_emulation):
        asked.append(including_emulation)
        return True

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", on_gpu)
    monkeypatch.setattr(settings_of, "_cpu_has_bf16_units", lambda: False)
    assert settings_of._has_bf16(None)
    assert settings_of._has_bf16("cuda")
    assert asked == [False, False], "emulated bf16 is slow"
    assert not settings_of._has_bf16("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not settings_of._has_bf16(None)
