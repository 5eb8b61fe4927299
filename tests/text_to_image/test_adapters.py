"""Adapters in files: written whole, counted when read, mixed, merged and taken away."""

import json
import logging

import pytest
import torch
from torch import nn
from torch.testing import assert_close

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from diffusion_core._validate import UsageError
from diffusion_core.files import read_safetensors, write_safetensors
from diffusion_core.text_to_image import (
    ADAPTER,
    TARGETS,
    adapter_tensors,
    add_adapter,
    load_adapter,
    remove_adapter,
    save_adapter,
)
from tests.text_to_image.tiny import outputs, painted, tiny_pipeline

MIXED = ["to_q", "to_k", "to_v", "to_out.0", "proj_in"]  # what loads by half


def with_adapter(targets="attention", r=4, alpha=4.0, name="default", seed=1, pipeline=None):
    """A pipeline with an adapter that does something."""
    pipeline = pipeline or tiny_pipeline()
    add_adapter(pipeline, r=r, alpha=alpha, targets=targets, name=name, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in adapter_tensors(pipeline, name).items():
        if ".lora_B." in key:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return pipeline


def adapted(pipeline, name="default"):
    """The layers of a U-Net that an adapter changes."""
    from peft.tuners.lora import LoraLayer

    layers = pipeline.unet.named_modules()
    return {n for n, layer in layers if isinstance(layer, LoraLayer) and name in layer.lora_A}


# --- a fresh one ---


def test_a_fresh_adapter_changes_nothing_and_learns_alone():
    pipeline = tiny_pipeline()
    before = outputs(pipeline)
    learned = add_adapter(pipeline, r=2, alpha=2.0)
    assert torch.equal(outputs(pipeline), before)
    assert len(learned) == 2 * len(adapted(pipeline))
    assert {id(p) for p in learned} == {
        id(p) for n, p in pipeline.unet.named_parameters() if "lora_" in n
    }


def test_the_seed_draws_it():
    a, b, c = (adapter_tensors(with_adapter(seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with_adapter()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("targets", TARGETS)
def test_every_layer_of_a_list_is_found(targets):
    """Counted in the base: no name of the list is left out."""
    pipeline = tiny_pipeline()
    expected = {
        name
        for name, _ in pipeline.unet.named_modules()
        if any(name.endswith("." + end) for end in TARGETS[targets])
    }
    add_adapter(pipeline, targets=targets)
    assert adapted(pipeline) == expected


def test_a_second_one_learns_alone():
    pipeline = with_adapter(name="first")
    learned = add_adapter(pipeline, name="second")
    ours = {id(p) for n, p in pipeline.unet.named_parameters() if ".second." in n}
    assert {id(p) for p in learned} == ours
    assert pipeline.get_active_adapters() == ["second"]


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("everything", r"choose one of \('attention', 'all'\)"),
        (["to_q", "to_z", "q"], "name that ends in to_z, q"),
    ],
)
def test_targets_that_are_not_there(targets, says):
    pipeline = tiny_pipeline()
    with pytest.raises(UsageError, match=says):
        add_adapter(pipeline, targets=targets)
    assert not adapted(pipeline)


def test_a_name_twice():
    pipeline = with_adapter()
    with pytest.raises(UsageError, match=r"adapter 'default' already; .*remove_adapter"):
        add_adapter(pipeline)


# --- to a file and back ---


@pytest.mark.parametrize("alpha", [4.0, 8.0, 1.0])
@pytest.mark.parametrize("targets", ["attention", "all", MIXED], ids=["attention", "all", "mixed"])
def test_saved_and_loaded_it_is_the_same(tmp_path, targets, alpha):
    """Whatever it changes, and whatever its alpha; by plain diffusers, too."""
    pipeline = with_adapter(targets, alpha=alpha)
    path = save_adapter(pipeline, tmp_path)
    assert path == tmp_path / ADAPTER
    expected, images = outputs(pipeline), painted(pipeline)
    assert (expected - outputs(tiny_pipeline())).abs().max() > 1e-2
    fresh, plain = tiny_pipeline(), tiny_pipeline()
    assert set(load_adapter(fresh, tmp_path)) == adapted(pipeline) == adapted(fresh)
    plain.load_lora_weights(tmp_path)
    for other in (fresh, plain):
        assert_close(outputs(other), expected, rtol=0, atol=1e-5)
        assert_close(painted(other), images, rtol=0, atol=1e-5)


def test_a_file_is_loaded_by_its_own_name_too(tmp_path):
    pipeline = with_adapter()
    path = save_adapter(pipeline, tmp_path).rename(tmp_path / "mine.safetensors")
    fresh = tiny_pipeline()
    load_adapter(fresh, path, "mine")
    assert_close(outputs(fresh), outputs(pipeline), rtol=0, atol=1e-5)


def test_the_file(tmp_path):
    """peft's names, the settings beside them, readable as any new file."""
    path = save_adapter(with_adapter(r=2, alpha=6.0), tmp_path)
    tensors, metadata = read_safetensors(path)
    assert all(name.startswith("unet.") and ".lora_" in name for name in tensors)
    settings = json.loads(metadata["lora_adapter_metadata"])
    assert settings["unet.r"] == 2
    assert settings["unet.lora_alpha"] == 6.0
    assert settings["unet.target_modules"] == sorted(TARGETS["attention"])
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode
    assert {p.name for p in tmp_path.iterdir()} == {ADAPTER, "new"}


def half_loaded(folder, targets):
    """Written under diffusers' names for the attention alone: how many layers went in, and what
    diffusers makes of the file."""
    from diffusers.utils import convert_state_dict_to_diffusers

    pipeline = with_adapter(targets)
    tensors = convert_state_dict_to_diffusers(adapter_tensors(pipeline))
    pipeline.save_lora_weights(folder, unet_lora_layers=tensors)
    return pipeline


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_why_a_wide_adapter_loads_by_half(tmp_path):
    """The first name in the file decides how all are read."""
    pipeline = half_loaded(tmp_path, MIXED)
    first = next(iter(read_safetensors(tmp_path / ADAPTER)[0]))
    assert "proj_in.lora_A" in first
    plain = tiny_pipeline()
    plain.load_lora_weights(tmp_path, adapter_name="default")
    assert adapted(plain) == {name for name in adapted(pipeline) if name.endswith("proj_in")}
    assert len(adapted(plain)) == 4
    assert len(adapted(pipeline)) == 36


def test_what_loads_by_half_is_refused(tmp_path):
    half_loaded(tmp_path, MIXED)
    fresh = tiny_pipeline()
    before = outputs(fresh)
    with pytest.raises(
        UsageError, match=r"only 4 of the 36 layers .*lost: .*attn1\.to_k.* and 29 more"
    ):
        load_adapter(fresh, tmp_path)
    assert not adapted(fresh)
    assert torch.equal(outputs(fresh), before)


def test_old_names_of_attention_alone_load(tmp_path):
    pipeline = half_loaded(tmp_path, [*TARGETS["attention"], "conv1"])
    fresh = tiny_pipeline()
    assert set(load_adapter(fresh, tmp_path)) == adapted(pipeline)
    assert_close(outputs(fresh), outputs(pipeline), rtol=0, atol=1e-5)


def test_a_tensor_that_is_lost_is_counted(tmp_path):
    path = save_adapter(with_adapter(), tmp_path)
    tensors, metadata = read_safetensors(path)
    lost = next(name for name in tensors if name.endswith("lora_B.weight"))
    del tensors[lost]
    write_safetensors(path, tensors, metadata)
    fresh = tiny_pipeline()
    with pytest.raises(UsageError, match="only 31 of the 32 layers"):
        load_adapter(fresh, tmp_path)
    assert not adapted(fresh)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ({"channels": (24, 32)}, r"down_blocks\.0.* has inputs \(24,\), not \(16,\)"),
        ({"width": 16}, r"attn2\.to_k has inputs \(16,\), not \(32,\)"),
    ],
)
def test_another_base(tmp_path, base, says):
    save_adapter(with_adapter(), tmp_path)
    other = tiny_pipeline(**base)
    with pytest.raises(UsageError, match="was made for another base .*" + says):
        load_adapter(other, tmp_path)
    assert not adapted(other)


def test_layers_that_the_base_does_not_have(tmp_path):
    path = save_adapter(with_adapter(), tmp_path)
    tensors, metadata = read_safetensors(path)
    renamed = {name.replace("mid_block", "end_block"): v for name, v in tensors.items()}
    write_safetensors(path, renamed, metadata)
    with pytest.raises(UsageError, match=r"end_block\S+ is not there"):
        load_adapter(tiny_pipeline(), tmp_path)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"unet.conv_in.weight": torch.zeros(2)}, "holds unet.conv_in.weight, which is no part"),
        ({"text_encoder.a.lora_A.bias": torch.zeros(2)}, "no part of a U-Net's LoRA"),
        ({}, "holds no tensor"),
    ],
)
def test_other_files(tmp_path, tensors, says):
    write_safetensors(tmp_path / ADAPTER, tensors, {"format": "pt"})
    with pytest.raises(UsageError, match=says):
        load_adapter(tiny_pipeline(), tmp_path)


def test_no_file_and_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_adapter(tiny_pipeline(), tmp_path)
    (tmp_path / ADAPTER).write_bytes(b"no")
    with pytest.raises(UsageError, match="truncated or not a safetensors file"):
        load_adapter(tiny_pipeline(), tmp_path)


def test_no_adapter_to_save(tmp_path):
    with pytest.raises(UsageError, match="has no adapter 'mine', only none"):
        save_adapter(tiny_pipeline(), tmp_path, "mine")
    with pytest.raises(UsageError, match=r"no adapter 'mine', only \['default'\]"):
        save_adapter(with_adapter(), tmp_path, "mine")
    assert not list(tmp_path.iterdir())


# --- several, merged, taken away ---


def test_taken_away_it_leaves_the_base():
    pipeline = tiny_pipeline()
    before, weights = outputs(pipeline), pipeline.unet.state_dict()
    with_adapter("all", pipeline=pipeline)
    assert not torch.equal(outputs(pipeline), before)
    remove_adapter(pipeline)
    after = pipeline.unet.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert torch.equal(outputs(pipeline), before)


def test_diffusers_own_unload_leaves_the_base(tmp_path):
    pipeline = tiny_pipeline()
    before = outputs(pipeline)
    save_adapter(with_adapter("all"), tmp_path)
    load_adapter(pipeline, tmp_path)
    pipeline.unload_lora_weights()
    assert torch.equal(outputs(pipeline), before)


def test_of_two_one_is_taken_away(tmp_path):
    pipeline = with_adapter(name="a", seed=1)
    only_a = outputs(pipeline)
    with_adapter(name="b", seed=2, pipeline=pipeline)
    remove_adapter(pipeline, "b")
    assert pipeline.get_active_adapters() == ["a"]
    assert torch.equal(outputs(pipeline), only_a)


def test_merged_is_the_same():
    pipeline = with_adapter("all", alpha=8.0)
    expected = outputs(pipeline)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    assert not adapted(pipeline)
    assert_close(outputs(pipeline), expected, rtol=0, atol=1e-5)


def test_the_last_one_loaded_is_active(tmp_path):
    save_adapter(with_adapter(seed=1), tmp_path / "a")
    save_adapter(with_adapter(seed=2), tmp_path / "b")
    pipeline = tiny_pipeline()
    load_adapter(pipeline, tmp_path / "a", "a")
    load_adapter(pipeline, tmp_path / "b", "b")
    assert pipeline.get_active_adapters() == ["b"]
    assert_close(outputs(pipeline), outputs(with_adapter(seed=2)), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="adapter 'a' already"):
        load_adapter(pipeline, tmp_path / "a", "a")


def test_two_mixed_are_the_weighted_sum(tmp_path):
    """On every layer: W x + 0.3 (what a adds) + 0.9 (what b adds)."""
    for name, seed, targets in (("a", 1, "attention"), ("b", 2, ["to_q", "ff.net.2"])):
        save_adapter(with_adapter(targets, seed=seed, alpha=8.0), tmp_path / name)
    pipeline = tiny_pipeline()
    weights = {"a": 0.3, "b": 0.9}
    for name in weights:
        load_adapter(pipeline, tmp_path / name, name)
    pipeline.set_adapters(list(weights), list(weights.values()))
    from peft.tuners.lora import LoraLayer

    n = 0
    for layer in pipeline.unet.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.base_layer, nn.Linear):
            x = torch.randn(3, layer.in_features)
            added = sum(
                w * 2 * layer.lora_B[name].weight @ layer.lora_A[name].weight
                for name, w in weights.items()
                if name in layer.lora_A
            )
            assert_close(layer(x), layer.base_layer(x) + x @ added.T, rtol=0, atol=1e-5)
            n += 1
    assert n == 36  # 32 of the attention, 4 of the feed-forward


def test_nothing_is_said_when_all_goes_well(tmp_path, caplog):
    """The chapters show no warnings."""
    save_adapter(with_adapter("all"), tmp_path)
    logging.getLogger("diffusers").addHandler(caplog.handler)
    load_adapter(tiny_pipeline(), tmp_path)
    logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert not caplog.records
