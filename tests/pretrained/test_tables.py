"""The stored tables say where they come from, and belong to the recipes as they are now."""

import dataclasses
import itertools
import json

import pytest

from benchmarks import kl_weight, latent_table, lora_table, pocket_table, study
from benchmarks.guidance_table import ROWS, SIZES, Row
from diffusion_core.files import sha256
from diffusion_core.pretrained import TABLES, WEIGHTS, load_table, read_card
from diffusion_core.text_to_image import GUIDANCE_SCALE
from diffusion_core.text_to_image.autoencoder import VAE
from diffusion_core.training import RECIPES


@pytest.mark.parametrize("name", sorted(p.stem for p in TABLES.glob("*.json")))
def test_every_table_names_its_command_and_machine(name):
    table = load_table(name)
    assert table["command"].startswith("python -m ")
    made = table | table.get("made", {})
    assert "torch" in made
    assert {"hardware", "machine"} & made.keys()


def test_the_seeds_are_those_of_todays_recipe():
    table = load_table("digits_seeds")
    today = json.loads(json.dumps(dataclasses.asdict(RECIPES["digits"].config)))
    assert table["config"] == today, "the recipe has changed: python -m benchmarks.digits_seeds"
    assert [row["seed"] for row in table["seeds"]] == [0, 1, 2]
    assert table["samples"] == 500
    assert all(row["agreement"] >= 0.85 for row in table["seeds"])
    assert table["judge_on_held_out_digits"] >= 0.97


def test_the_loss_weights_were_tried_on_todays_recipe():
    table = load_table("loss_weights")
    today = json.loads(json.dumps(dataclasses.asdict(RECIPES["digits"].config)))
    assert table["config"] == today, "the recipe has changed: python -m benchmarks.loss_weights"
    steps, gammas, seeds = (today["steps"] // 2, today["steps"]), (0.0, 0.5, 1.0), (0, 1, 2)
    found = {(row["steps"], row["gamma"], row["seed"]) for row in table["rows"]}
    assert found == set(itertools.product(steps, gammas, seeds))
    assert len(table["rows"]) == len(found)
    assert all(len(row["loss_by_t"]) == 10 for row in table["rows"])


def test_the_table_of_steps_and_noise_belongs_to_todays_weights():
    table = load_table("ddim_mnist")
    today = read_card(WEIGHTS / "mnist.json")["sha256"]
    assert table["weights_sha256"] == today, (
        "the weights have changed: python -m benchmarks.ddim_table"
    )
    found = [
        (row["eta"], row["S"], row["seed"], row["precision"], row["clip"]) for row in table["rows"]
    ]
    assert len(found) == len(set(found))
    needed = {(eta, S, 0, "bf16", True) for eta in (0.0, 0.2, 0.5, 1.0, "hat") for S in (10, 20)}
    assert needed | {(1.0, 1000, 0, "bf16", True), (0.0, 10, 0, "fp32", True)} <= set(found)
    assert all(row["frechet"] > 0 and 0 <= row["agreement"] <= 1 for row in table["rows"])


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"no table named 'nothing'.*digits_seeds"):
        load_table("nothing")


def test_guidance_was_measured_on_the_shipped_weights():
    table = load_table("guidance_mnist")
    assert table["weights_sha256"] == read_card(WEIGHTS / "mnist.json")["sha256"]
    settings = [
        {k: v for k, v in row.items() if k in Row.__dataclass_fields__} for row in table["rows"]
    ]
    assert settings == [
        json.loads(json.dumps(dataclasses.asdict(row)))
        for row in ROWS
        if dataclasses.asdict(row) in settings
    ]
    assert {0.0, 1.0, 1.5, 2.0, 4.0, 8.0, -1.0} == {
        row["gamma"] for row in table["rows"] if row["seed"] == 0
    }
    assert {f["n"] for f in table["floor"]} == set(SIZES)
    for row in table["rows"]:
        assert all(
            0 <= size["agreement"] <= 1 and size["frechet"] > 0 for size in row["sizes"].values()
        )


def test_the_study_is_whole_and_was_made_with_the_shipped_weights():
    table = load_table("study_mnist")
    assert table["weights_sha256"] == read_card(WEIGHTS / "mnist.json")["sha256"]
    fields = study.Row.__dataclass_fields__
    found = [study.Row(**{k: row[k] for k in fields}) for row in table["rows"]]
    together = [row for row in found if row.seed is None]
    assert len(found) == len(set(found)) and set(found) - set(together) == set(study.ROWS)
    for row in together:  # a setting of which all seeds are there
        assert {dataclasses.replace(row, seed=seed) for seed in study.SEEDS} <= set(found)
    assert len(together) == len(study.ROWS) / len(study.SEEDS)
    assert {f["seed"]: f["n"] for f in table["floor"]} == {0: 200, 1: 200, 2: 200, None: 600}
    for row in table["rows"]:
        assert row["evaluations"] == row["S"] * (1 if row["gamma"] == 1 else 2) <= 50
        assert 0 <= row["agreement"] <= 1 and row["frechet"] > 0 and row["spread"] > 0


def test_the_weights_of_kl_are_whole_and_of_todays_settings():
    table = load_table("kl_weight")
    now = {"config": dataclasses.asdict(kl_weight.CONFIG), "net": kl_weight.NET}
    assert {key: table[key] for key in now} == json.loads(json.dumps(now))
    found = {(row["weight"], row["seed"]) for row in table["rows"]}
    assert len(found) == len(table["rows"])
    for weight in kl_weight.WEIGHTS:  # a stopped run may lack the last seed of some
        assert len([w for w, _ in found if w == weight]) >= 2, weight


def test_latents_were_measured_on_the_shipped_autoencoder():
    table = load_table("latent_shapes")
    shipped = sha256(VAE / "diffusion_pytorch_model.safetensors")
    assert table["autoencoder_sha256"] == shipped, "python -m benchmarks.latent_table"
    for space in ("pixels", "latents"):
        rows = [r for r in table["rows"] if r["space"] == space]
        usual = [r for r in rows if (r["times"], r["std"]) == (1, 1.0)]
        assert {r["seed"] for r in usual} == set(latent_table.SEEDS)
        for row in usual:
            one = 3 * latent_table.BATCH * table["counts"][space]
            assert 0 <= latent_table.BUDGET - row["training"] <= 0.2 * latent_table.BUDGET + one
    assert {f["name"] for f in table["floors"]} == {"real", "rebuilt"}
    planned = {(net.space, net.seed, net.times, net.std) for net in latent_table.plan()}
    assert {(r["space"], r["seed"], r["times"], r["std"]) for r in table["rows"]} == planned


def test_prompts_were_scored_on_the_shipped_pocket_model():
    table = load_table("pocket")
    stored = json.loads((WEIGHTS / "pocket.json").read_text(encoding="utf8"))["sha256"]
    assert table["weights_sha256"] == stored["unet/diffusion_pytorch_model.safetensors"], (
        "the weights have changed: python -m benchmarks.pocket_table"
    )
    assert table["guidance_scale"] == GUIDANCE_SCALE
    found = [settings_of(row) for row in table["rows"]]
    assert found == pocket_table.accuracy_rows(pocket_table.PROMPTS, GUIDANCE_SCALE)
    found = [settings_of(row) for row in table["guidance"]]
    assert found == pocket_table.guidance_rows(pocket_table.SMALL)
    found = [settings_of(row) for row in table["schedulers"]]
    assert found == pocket_table.scheduler_rows(pocket_table.SMALL, GUIDANCE_SCALE)
    for row in table["rows"]:
        assert len(row["wrong"]) == round((1 - row["right"]) * row["n"])


def test_adapters_were_trained_on_the_shipped_pocket_model():
    table = load_table("lora")
    stored = json.loads((WEIGHTS / "pocket.json").read_text(encoding="utf8"))["sha256"]
    assert table["weights_sha256"] == stored["unet/diffusion_pytorch_model.safetensors"], (
        "the weights have changed: python -m benchmarks.lora_table"
    )
    found = [(row["training"], row["scale"]) for row in table["rows"]]
    assert found == [(one and dataclasses.asdict(one), scale) for one, scale in lora_table.ROWS]
    for row in table["rows"]:
        assert len(row["new"]) == lora_table.NEW and len(row["old"]) == lora_table.OLD
        assert set(row["new"] + row["old"]) <= {"0", "1"}
        if row["training"]:
            head = row["bytes"] - 2 * row["parameters"]  # names, beside numbers of half precision
            assert 0 < head < 40_000


def settings_of(row):
    return pocket_table.Row(**{k: row[k] for k in pocket_table.Row.__dataclass_fields__})
