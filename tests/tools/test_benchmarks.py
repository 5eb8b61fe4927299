"""The benchmarks' own measures; the tables themselves are checked where they are shown."""

import pytest
import torch

from benchmarks.__main__ import (
    Trainer,
    allocated_by,
    budget_seconds_of,
    build_parser,
    command,
    forget,
    peak_memory,
    settle_budget,
    spread,
)
from benchmarks.rivals import ours
from diffusion_core.networks import UNet

MIB = 2**20


def test_allocated_memory_is_the_height_not_the_sum():
    def one_after_the_other():
        for _ in range(3):
            torch.ones(MIB)

    def two_at_once():
        return torch.ones(MIB), torch.ones(MIB)

    assert allocated_by(one_after_the_other, "cpu") == pytest.approx(4 * MIB, rel=0.01)
    assert allocated_by(two_at_once, "cpu") == pytest.approx(8 * MIB, rel=0.01)


def test_peak_memory_grows_with_the_batch_not_below_the_weights():
    net = UNet(width=8, multipliers=(1, 2), attention=(False, False))
    trainer = Trainer(ours(net, net), "cpu", bf16=False)
    weights = 12 * sum(p.numel() for p in net.parameters()) / MIB
    small, large = (peak_memory(trainer, torch.randn(n, 1, 32, 32)) for n in (1, 8))
    assert weights < small < large < 8 * small


def test_a_budget_counts_work_and_not_waiting():
    import time

    assert budget_seconds_of(lambda: time.sleep(0.2), "cpu") < 0.1


@pytest.mark.parametrize(
    ("tables", "left"), [(["overhead"], {"budget", "budget_settings"}), (["budget"], {"overhead"})]
)
def test_a_kept_table_keeps_its_settings(tables, left):
    result = dict.fromkeys(("overhead", "budget", "budget_settings"), 1)
    forget(result, tables)
    assert set(result) == left


def test_a_stored_command_names_no_folder():
    call = ["budget", "--data", "D:/data", "--seeds", "0", "1", "--out", "x.json", "--steps", "20"]
    assert command(call) == "python -m benchmarks budget --seeds 0 1 --steps 20"


def test_spread_is_the_middle_half():
    assert spread([float(v) for v in range(1, 12)]) == {"median": 6, "low": 3, "high": 9, "n": 11}


def stored_budget():
    return {
        "budget_settings": {"batch_size": 16, "samples": 250, "steps": 20, "threads": 1},
        "budget": [{"seconds": 0}, {"seconds": 450}, {"seconds": 150}],
    }


def test_a_stored_budget_table_goes_on_as_it_was_begun():
    arguments = build_parser().parse_args([])
    assert settle_budget(arguments, stored_budget()) == stored_budget()["budget_settings"]
    assert (arguments.batch_size, arguments.samples, arguments.steps, arguments.threads) == (
        16,
        250,
        20,
        1,
    )
    assert arguments.budgets == [150, 450]


def test_a_first_budget_table_has_the_defaults_and_what_was_asked():
    arguments = build_parser().parse_args(["--samples", "100", "--budgets", "5"])
    assert settle_budget(arguments, {}) == {
        "batch_size": 64,
        "samples": 100,
        "steps": 50,
        "threads": 0,
    }
    assert arguments.budgets == [5]


def test_a_budget_table_is_not_mixed():
    with pytest.raises(SystemExit, match=r"other settings.*--again budget"):
        settle_budget(build_parser().parse_args(["--steps", "50"]), stored_budget())
