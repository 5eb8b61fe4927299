"""check(): what passes, what raises, and what is printed and written down."""

import json
import math

import pytest
import torch

from diffusion_core.checks import CheckFailed, check


def test_a_claim_that_holds_prints_one_stable_line(capsys, monkeypatch):
    monkeypatch.delenv("DIFFUSION_LEDGER", raising=False)
    check("one is one", 1e-14, within=1e-12, equation="DDPM 4")
    check("half", torch.tensor([0.5]), within=0.5)
    printed = capsys.readouterr().out
    assert printed == "✓ one is one [DDPM 4] (within 1e-12)\n✓ half (within 0.5)\n"


@pytest.mark.parametrize(
    "measured",
    [2.0, -2.0, torch.tensor([0.0, -2.0]), torch.tensor([[0.1, 0.2], [2.0, 0.3]]), 2],
)
def test_the_largest_absolute_value_counts(measured):
    with pytest.raises(CheckFailed, match=r"claim \[DDPM 7\]: measured 2, not within 1\.5"):
        check("claim", measured, within=1.5, equation="DDPM 7")
    check("claim", measured, within=2)


@pytest.mark.parametrize("measured", [math.nan, math.inf, torch.tensor([0.0, math.nan, 5.0])])
def test_nan_and_infinity_fail(measured):
    with pytest.raises(CheckFailed):
        check("claim", measured, within=1e300)


def test_check_failed_is_an_assertion_error():
    with pytest.raises(AssertionError):
        check("claim", 1, within=0)


@pytest.mark.parametrize("within", [-1e-3, math.inf, math.nan, None, "1"])
def test_a_bound_must_be_a_bound(within):
    with pytest.raises(ValueError, match="must be a finite number, at least 0"):
        check("claim", 0.0, within=within)


def test_nothing_measured_is_no_proof():
    with pytest.raises(ValueError, match="nothing was measured"):
        check("claim", torch.zeros(0), within=1.0)


def test_the_ledger_gets_one_line_a_check(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setenv("DIFFUSION_LEDGER", str(path))
    monkeypatch.setenv("DIFFUSION_CHAPTER", "2-from-scratch/sampling")
    check("first", torch.tensor([0.25, -0.5]), within=1, equation="DDPM 11")
    with pytest.raises(CheckFailed):
        check("fails", 2.0, within=1)
    monkeypatch.delenv("DIFFUSION_CHAPTER")
    check("second ±", 0, within=0)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {
            "claim": "first",
            "measured": 0.5,
            "within": 1,
            "equation": "DDPM 11",
            "chapter": "2-from-scratch/sampling",
        },
        {
            "claim": "second ±",
            "measured": 0.0,
            "within": 0,
            "equation": None,
            "chapter": None,
        },
    ]


def test_gradients_and_half_precision_do_not_matter():
    check("claim", torch.tensor([0.5], requires_grad=True), within=0.5)
    check("claim", torch.tensor([0.5], dtype=torch.bfloat16), within=0.5)
