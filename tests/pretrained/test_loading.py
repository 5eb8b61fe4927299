"""Shipped weights: that they load, that they are what their cards say, and that a wrong file is refused."""

import dataclasses
import json

import pytest
import torch

from diffusion_core import files, pretrained
from diffusion_core.data import load_images
from diffusion_core.evaluation import Moments, load_classifier, save_moments
from diffusion_core.networks import Classifier, UNet, classify
from diffusion_core.pretrained import cards, load_net, load_pretrained, save_net
from diffusion_core.training import RECIPES, train_classifier

CARD = {"schedule": "linear", "data": {"name": "digits"}}


@pytest.fixture
def stored(tmp_path):
    """A small net with its card in a folder of its own."""
    torch.manual_seed(0)
    net = UNet(width=8, multipliers=(1,), attention=(False,), classes=3)
    save_net(net, "tiny", CARD, tmp_path)
    return net, tmp_path


def test_a_stored_net_comes_back(stored):
    net, folder = stored
    model = load_pretrained("tiny", folder)
    for ours, theirs in zip(net.parameters(), model.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not theirs.requires_grad
    assert not model.net.training
    assert model.schedule.T == 1000
    assert model.card["net"]["parameters"] == sum(p.numel() for p in net.parameters())
    assert model.card["sha256"] == files.sha256(folder / "tiny.safetensors")


def test_half_precision_storage_is_rounded_and_loaded_as_float32(stored, tmp_path):
    net, _ = stored
    save_net(net, "half", CARD, tmp_path, dtype=torch.float16)
    loaded = load_pretrained("half", tmp_path).net
    for ours, theirs in zip(net.parameters(), loaded.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(ours.half().float(), theirs)


def test_nothing_is_left_beside_the_files(stored):
    assert sorted(p.name for p in stored[1].iterdir()) == ["tiny.json", "tiny.safetensors"]


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_truncated_or_tampered_file_is_refused(stored, damage):
    path = stored[1] / "tiny.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="is not the file its card describes"):
        load_pretrained("tiny", stored[1])


def test_a_foreign_file_is_refused_and_never_unpickled(stored):
    folder = stored[1]
    path = folder / "tiny.safetensors"
    torch.save({"x": _Bomb()}, path)
    card = json.loads((folder / "tiny.json").read_text())
    card["sha256"] = files.sha256(path)
    (folder / "tiny.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load_pretrained("tiny", folder)


class _Bomb:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self):
        return _explode, ()


def _explode():
    raise AssertionError("a weight file was unpickled")


def test_an_unknown_name_says_what_there_is(stored):
    with pytest.raises(
        FileNotFoundError, match=r"no weights named 'large'.*\['tiny'\].*train --help"
    ):
        load_pretrained("large", stored[1])


def test_a_json_without_weights_is_no_network(stored):
    (stored[1] / "table.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no weights named 'table'.*there are \['tiny'\]"):
        load_pretrained("table", stored[1])


@pytest.mark.parametrize("key", ["schedule", "data"])
def test_a_card_without_schedule_or_data_is_refused(stored, key):
    path = stored[1] / "tiny.json"
    card = json.loads(path.read_text())
    del card[key]
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="the card of 'tiny' names no schedule or no data"):
        load_pretrained("tiny", stored[1])


def test_the_shipped_network_is_what_the_recipe_trains():
    net, card = load_net("mnist")
    recipe = RECIPES["mnist"]
    asked = json.loads(json.dumps(dataclasses.asdict(recipe.config)))
    assert card["config"] | {"precision": asked["precision"]} == asked
    assert net.config == recipe.build()[0].config
    assert (card["schedule"], card["data"]["name"]) == (recipe.schedule, recipe.data)


@pytest.mark.parametrize(
    "damage", ["text", "list", "no net", "other class", "other arguments", "other sizes"]
)
def test_a_card_that_describes_no_net_is_refused(stored, damage):
    path = stored[1] / "tiny.json"
    card = json.loads(path.read_text())
    if damage == "no net":
        del card["net"]
    elif damage == "other class":
        card["net"]["class"] = "Transformer"
    elif damage == "other arguments":
        card["net"]["arguments"]["depth"] = 3
    elif damage == "other sizes":
        card["net"]["arguments"]["width"] = 16
    path.write_text({"text": "{", "list": "[]"}.get(damage) or json.dumps(card))
    with pytest.raises(ValueError, match=r"tiny\.json (is not JSON|is no card|describes no net)"):
        load_pretrained("tiny", stored[1])


def test_moments_that_were_changed_are_refused(tmp_path):
    one, other = (Moments(torch.zeros(2), torch.eye(2), n) for n in (5, 6))
    path = save_moments("judge", {"train": one, "test": other}, tmp_path)
    card = {"moments_sha256": files.sha256(path)}
    save_net(Classifier(classes=3, width=8), "judge", card, tmp_path)
    assert load_classifier("judge", tmp_path)[1]["test"].n == 6
    save_moments("judge", {"train": other, "test": one}, tmp_path)
    with pytest.raises(ValueError, match=r"moments\.safetensors is not the file that the card"):
        load_classifier("judge", tmp_path)


def test_a_classifier_is_no_noise_predictor(tmp_path):
    save_net(Classifier(classes=3, width=8), "judge", {}, tmp_path)
    with pytest.raises(ValueError, match="'judge' is a Classifier, not a noise predictor"):
        load_pretrained("judge", tmp_path)


def test_a_noise_predictor_is_no_classifier(stored):
    with pytest.raises(ValueError, match="'tiny' is a UNet, not a classifier"):
        load_classifier("tiny", stored[1])


def test_a_full_disk_keeps_the_old_card(stored, monkeypatch):
    before = (stored[1] / "tiny.safetensors").read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*MiB are free.*previous file is kept"):
        save_net(stored[0], "tiny", CARD, stored[1])
    assert (stored[1] / "tiny.safetensors").read_bytes() == before


def test_a_full_disk_at_the_card_keeps_the_old_pair(stored, monkeypatch):
    """The weights are in place only together with their card."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    torch.manual_seed(1)
    other = UNet(width=8, multipliers=(1,), attention=(False,), classes=3)
    before = load_pretrained("tiny", stored[1]).card["sha256"]
    monkeypatch.setattr(cards, "write_json", lambda *arguments: full(0))
    with pytest.raises(OSError, match="No space left"):
        save_net(other, "tiny", CARD, stored[1])
    monkeypatch.undo()
    assert load_pretrained("tiny", stored[1]).card["sha256"] == before
    assert sorted(p.name for p in stored[1].iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_a_full_disk_keeps_the_old_json(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"a\.json could not be written .*No space.*previous file is kept"
    ):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_shipped_classifier_is_the_one_of_its_card():
    net, moments, card = load_classifier()
    assert card["metrics"]["test_accuracy"] >= 0.993
    assert card["metrics"]["n"] == 10_000
    assert {split: m.n for split, m in moments.items()} == {"train": 60_000, "test": 10_000}
    for m in moments.values():
        assert isinstance(m, Moments)
        assert m.mean.shape == (64,)
        assert torch.linalg.eigvalsh(m.cov).min() > -1e-9
    _, features = classify(net, torch.zeros(3, 1, 28, 28), batch_size=2)
    assert features.shape == (3, 64)


def test_the_shipped_mnist_model_draws_digits():
    """Ten digits in 25 steps: the classifier reads most of them as the label that was asked for."""
    from diffusion_core.pretrained import generate

    model = load_pretrained("mnist")
    y = torch.arange(10)
    x = generate(model, y, 10, 25, 0, "cpu")
    assert x.shape == (10, 1, 28, 28)
    assert x.abs().max() <= 1.001
    labels, _ = classify(load_classifier()[0], x)
    assert (labels == y).sum() >= 8
    for key in (
        "command",
        "data",
        "seed",
        "steps",
        "images_per_s",
        "hardware",
        "seconds",
        "licence",
    ):
        assert model.card[key] not in (None, "")


def test_every_shipped_file_has_a_card():
    names = {p.stem.removesuffix("_moments") for p in pretrained.WEIGHTS.glob("*.safetensors")}
    for name in names:
        net, card = load_net(name)
        assert card["name"] == name
        assert sum(p.numel() for p in net.parameters()) == card["net"]["parameters"]


def test_a_classifier_learns_the_digits():
    data = load_images("digits", "train")
    net = train_classifier(data, epochs=4, batch_size=64, seed=0)
    assert not net.training
    test = load_images("digits", "test")
    labels, features = classify(net, test.x, batch_size=77)
    assert (labels == test.labels).double().mean() > 0.85
    assert torch.equal(net(test.x).argmax(1), labels)
    assert features.dtype == torch.float64
