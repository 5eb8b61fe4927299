"""The ablation: every variant takes out what its name says and nothing else, and the stored table is
the summary of its runs."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks import ablation
from diffusion_core.networks import AttentionBlock, ResidualBlock
from diffusion_core.pretrained import load_table
from tests.conftest import normal

X, T, Y = normal(2, 1, 8, 8).float(), torch.tensor([100, 700]), torch.tensor([3, 10])


def made(variant: str) -> nn.Module:
    torch.manual_seed(0)
    return ablation.VARIANTS[variant]()


def awake(variant: str) -> nn.Module:
    return ablation.no_zero_init(made(variant))


@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_every_variant_runs_and_differs_from_the_full_net(variant):
    out = awake(variant)(X, T, Y)
    assert out.shape == X.shape
    if variant not in ("full", "no zero init"):
        assert (out - awake("full")(X, T, Y)).abs().max() > 1e-3


def test_without_time_the_answer_does_not_depend_on_t():
    net = awake("no time embedding")
    assert_close(net(X, T, Y), net(X, T + 200, Y), rtol=0, atol=0)
    assert (net(X, T, Y) - net(X, T, Y.flip(0))).abs().max() > 1e-3


def test_time_at_the_input_is_heard_there_and_nowhere_else():
    net = awake("time at the input")
    assert (net(X, T, Y) - net(X, T + 200, Y)).abs().max() > 1e-3
    nn.init.zeros_(net.net.conv_in.time.weight)
    assert_close(net(X, T, Y), net(X, T + 200, Y), rtol=0, atol=0)


def test_without_skips_the_way_up_sees_the_middle_alone():
    """Cut the middle, and nothing of the image is left."""
    for variant, seen in (("no skips", False), ("full", True)):
        net = awake(variant)
        net.middle[-1].register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        difference = (net(X, T, Y) - net(X.flip(0), T, Y)).abs().max()
        assert (difference > 1e-3) == seen


def test_what_is_missing_is_missing():
    def count(variant, kind):
        return sum(isinstance(m, kind) for m in made(variant).modules())

    assert count("full", AttentionBlock) == 4
    assert count("no attention", AttentionBlock) == 0
    assert count("full", nn.GroupNorm) > 0
    assert count("no group norm", nn.GroupNorm) == 0
    assert not made("full")(X, T, Y).any()
    assert made("no zero init")(X, T, Y).any()
    block = next(m for m in made("no residual").modules() if isinstance(m, ResidualBlock))
    x, emb = normal(2, 16, 8, 8).float(), normal(2, 128).float()
    nn.init.zeros_(block.conv2.weight)
    assert_close(
        block(x, emb), block.conv2.bias[None, :, None, None].expand(2, 16, 8, 8), rtol=0, atol=1e-6
    )


def test_the_stored_table_is_of_todays_settings_and_the_summary_of_its_runs():
    table = load_table("ablation")
    assert table["settings"] == ablation.settings()
    assert table["summary"] == ablation.summary(table["runs"])
    assert list(table["summary"]) == list(ablation.VARIANTS)
    assert {(r["variant"], r["seed"]) for r in table["runs"]} == {
        (v, s) for v in ablation.VARIANTS for s in ablation.SEEDS
    }


def test_a_variant_without_all_its_runs_is_left_out():
    runs = [
        r for r in load_table("ablation")["runs"] if (r["variant"], r["seed"]) != ("no skips", 1)
    ]
    assert "no skips" not in ablation.summary(runs)
    assert "full" in ablation.summary(runs)
