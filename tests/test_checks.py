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


@pytest.mark.parametrize("measured", [3, -1.0, torch.tensor([3.0, -5.0])])
def test_at_most_bounds_the_largest_value_with_its_sign(measured, capsys):
    check("claim", measured, at_most=3)
    assert capsys.readouterr().out == "✓ claim (at most 3)\n"
    with pytest.raises(CheckFailed, match=r"claim: measured (3|-1), not at most -2"):
        check("claim", measured, at_most=-2)


@pytest.mark.parametrize("measured", [3, 7.5, torch.tensor([7.5, 3.0])])
def test_at_least_bounds_the_smallest_value_with_its_sign(measured, capsys):
    check("claim", measured, at_least=3, equation="DDPM 3")
    assert capsys.readouterr().out == "✓ claim [DDPM 3] (at least 3)\n"
    with pytest.raises(CheckFailed, match=r"claim: measured (3|7\.5), not at least 8"):
        check("claim", measured, at_least=8)


@pytest.mark.parametrize("bound", ["within", "at_most", "at_least"])
def test_nan_keeps_no_bound(bound):
    with pytest.raises(CheckFailed, match="measured nan"):
        check("claim", torch.tensor([0.0, math.nan]), **{bound: 1.0})


@pytest.mark.parametrize("bound", ["within", "at_most", "at_least"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "1"])
def test_a_bound_must_be_a_number(bound, value):
    with pytest.raises(ValueError, match=r"(within|at most|at least) = .* must be a finite number"):
        check("claim", 0.0, **{bound: value})


def test_a_tolerance_is_not_negative():
    with pytest.raises(ValueError, match=r"within = -0\.001 must be at least 0"):
        check("claim", 0.0, within=-1e-3)


@pytest.mark.parametrize("bounds", [{}, {"within": 1, "at_most": 1}, {"at_most": 1, "at_least": 0}])
def test_one_bound_must_be_given(bounds):
    with pytest.raises(
        TypeError, match=f"give one of within, at_most and at_least, not {len(bounds)}"
    ):
        check("claim", 0.0, **bounds)


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
            "bound": "within 1",
            "equation": "DDPM 11",
            "chapter": "2-from-scratch/sampling",
        },
        {
            "claim": "second ±",
            "measured": 0.0,
            "bound": "exact",
            "equation": None,
            "chapter": None,
        },
    ]


def test_gradients_and_half_precision_do_not_matter():
    check("claim", torch.tensor([0.5], requires_grad=True), within=0.5)
    check("claim", torch.tensor([0.5], dtype=torch.bfloat16), within=0.5)
