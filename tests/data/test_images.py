"""Images in and out: digits, the map between 0..255 and [-1, 1], where data is looked for, and drawn
scenes whose captions are true."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.testing import assert_close

from diffusion_core.data import Images, from_uint8, load_images, to_uint8

EVERY = torch.arange(256, dtype=torch.uint8)


# --- the range ---


def test_from_uint8_is_the_linear_map():
    assert_close(
        from_uint8(EVERY), (torch.arange(256).double() / 127.5 - 1).float(), rtol=0, atol=1e-6
    )
    assert from_uint8(EVERY).dtype == torch.float32
    assert from_uint8(EVERY)[[0, 255]].tolist() == [-1.0, 1.0]


def test_there_and_back_for_every_grey_level():
    assert torch.equal(to_uint8(from_uint8(EVERY)), EVERY)


def test_to_uint8_rounds_and_clips():
    x = torch.tensor([-7.0, -1.001, -1.0, -0.9962, -0.9960, 0.0039, 1.0, 1.001, 99.0, torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 0, 0, 1, 128, 255, 255, 255, 255]
    assert to_uint8(x).dtype == torch.uint8
    assert to_uint8(torch.full((2,), -torch.inf)).tolist() == [0, 0]
    assert to_uint8(torch.ones(2, dtype=torch.bfloat16)).tolist() == [255, 255]


def test_to_uint8_refuses_nan():
    """Cast silently, NaN would be a black image."""
    with pytest.raises(ValueError, match="hold NaN"):
        to_uint8(torch.tensor([0.0, torch.nan]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int8])
def test_from_uint8_refuses_what_is_not_pixels(dtype):
    with pytest.raises(TypeError, match="expected uint8"):
        from_uint8(torch.zeros(3, dtype=dtype))


# --- digits ---


def test_digits_splits_are_the_whole_set_once():
    from sklearn.datasets import load_digits

    original = load_digits()
    train, test = load_images("digits"), load_images("digits", "test")
    assert train.pixels.shape == (1497, 1, 8, 8)
    assert test.pixels.shape == (300, 1, 8, 8)
    assert train.labels.shape == (1497,)
    assert test.labels.shape == (300,)
    assert train.pixels.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    rest = [i for i in range(1797) if i % 6]
    for images, index in ((test, list(range(0, 1797, 6))), (train, rest)):
        levels = torch.from_numpy(original.images[index])[:, None]  # 0..16
        assert (images.pixels.double() - levels * 255 / 16).abs().max() <= 0.5
        assert images.labels.tolist() == original.target[index].tolist()


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_fill_the_range(split):
    data = load_images("digits", split)
    assert data.x.dtype == torch.float32
    assert data.x.min() == -1
    assert data.x.max() == 1
    assert data.labels.unique().tolist() == list(range(10))
    assert_close(data.x, from_uint8(data.pixels), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "split"), [("digit", "train"), ("digits", "valid"), ("", "test")])
def test_unknown_names_and_splits(name, split):
    with pytest.raises(ValueError, match=r"choose from .*'digits'.*'train', 'test'"):
        load_images(name, split)


# --- torchvision's data, without a network ---


class Store:
    """Stands in for torchvision's datasets: knows which folders hold data, and whether there is a
    network; remembers what it was asked."""

    def __init__(self, monkeypatch, tmp_path, holds=(), network=False):
        self.holds, self.network, self.asked = [Path(h) for h in holds], network, []
        monkeypatch.setattr(torchvision.datasets, "MNIST", self.dataset)
        monkeypatch.setattr(torchvision.datasets, "CIFAR10", self.dataset)
        monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path / "home"))
        monkeypatch.delenv("DIFFUSION_DATA", raising=False)
        self.cache = tmp_path / "home" / ".cache" / "diffusion_data"

    def dataset(self, root, train, download):
        self.asked.append((Path(root), train, download))
        if download and not self.network:
            raise OSError("no network")
        if not download and Path(root) not in self.holds:
            raise RuntimeError("Dataset not found.")

        class Found:
            data = torch.arange(2 * 28 * 28).remainder(256).to(torch.uint8).reshape(2, 28, 28)
            targets = torch.tensor([7, 2])

        return Found()


def test_missing_data_says_where_it_looked_and_what_to_do(monkeypatch, tmp_path):
    store = Store(monkeypatch, tmp_path)
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path / "from-env"))
    with pytest.raises(FileNotFoundError) as caught:
        load_images("mnist", "test")
    message = str(caught.value)
    for place in (tmp_path / "from-env", store.cache):
        assert str(place) in message
    for words in ("mnist was not found", "OSError", "DIFFUSION_DATA", "torchvision's MNIST folder"):
        assert words in message
    assert isinstance(caught.value.__cause__, OSError)
    assert store.asked == [
        (tmp_path / "from-env", False, False),
        (store.cache, False, False),
        (store.cache, False, True),
    ]


def test_a_folder_that_was_named_must_hold_the_data(monkeypatch, tmp_path):
    """A slip in --data is no reason to take other images, or to download them."""
    store = Store(monkeypatch, tmp_path, network=True)
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path / "from-env"))
    store.holds = [tmp_path / "from-env", store.cache]
    with pytest.raises(
        FileNotFoundError,
        match=r"mnist was not found in .*given: it must hold torchvision's MNIST folder",
    ):
        load_images("mnist", "test", tmp_path / "given")
    assert store.asked == [(tmp_path / "given", False, False)]


@pytest.mark.parametrize("where", ["from-env", "cache"])
def test_folders_are_tried_in_order(monkeypatch, tmp_path, where):
    """$DIFFUSION_DATA, then the cache; the first that holds the data is used, and nothing is
    downloaded."""
    store = Store(monkeypatch, tmp_path)
    places = {"from-env": tmp_path / "from-env", "cache": store.cache}
    monkeypatch.setenv("DIFFUSION_DATA", str(places["from-env"]))
    order = list(places)
    store.holds = [places[name] for name in order[order.index(where) :]]
    images = load_images("mnist", "train")
    assert isinstance(images, Images)
    asked = [(places[name], True, False) for name in order[: order.index(where) + 1]]
    assert store.asked == asked


def test_a_folder_that_was_named_comes_first(monkeypatch, tmp_path):
    store = Store(monkeypatch, tmp_path, holds=[tmp_path / "given", tmp_path / "from-env"])
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path / "from-env"))
    load_images("mnist", "train", tmp_path / "given")
    assert store.asked == [(tmp_path / "given", True, False)]


def test_without_folders_it_is_downloaded_into_the_cache(monkeypatch, tmp_path):
    store = Store(monkeypatch, tmp_path, network=True)
    images = load_images("mnist")
    assert store.asked == [(store.cache, True, False), (store.cache, True, True)]
    assert images.pixels.shape == (2, 1, 28, 28)
    assert images.pixels.dtype == torch.uint8
    assert images.labels.tolist() == [7, 2]
    assert images.labels.dtype == torch.int64
    assert images.pixels[0, 0, 0, :3].tolist() == [0, 1, 2]


def test_colour_images_get_their_channels_first(monkeypatch, tmp_path):
    """CIFAR-10 comes as (N, H, W, C) numpy with a list of labels."""
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)

    class Found:
        data = pixels
        targets = [3, 1]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda **_: Found())
    images = load_images("cifar10", "test", tmp_path)
    assert images.pixels.shape == (2, 3, 4, 5)
    assert images.pixels[1, 2, 3, 4].item() == pixels[1, 3, 4, 2]
    assert images.labels.tolist() == [3, 1]
    assert images.labels.dtype == torch.int64


def test_damaged_files_are_named(tmp_path):
    """As an interrupted download leaves them: torchvision only looks whether they are there."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (raw / f"{part}-{kind}").write_bytes(b"\x00\x00\x08\x03\x00")
    with pytest.raises(ValueError, match=r"files of mnist in .* are damaged .*delete .*MNIST"):
        load_images("mnist", "train", tmp_path)


def test_the_folder_of_cifar10_is_named_as_torchvision_does(tmp_path):
    with pytest.raises(FileNotFoundError, match="torchvision's cifar-10-batches-py folder"):
        load_images("cifar10", "test", tmp_path)


def write_mnist(folder, train=3, test=2, cut=0, labels=None):
    """The four files of a small MNIST; `cut` bytes are missing from the train images."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        head = bytes([0, 0, 8, 3]) + b"".join(k.to_bytes(4, "big") for k in (n, 28, 28))
        body = bytes(n * 28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            (head + body)[: -cut or None] if part == "train" else head + body
        )
        count = labels if labels is not None and part == "train" else n
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(count)
        )
    return folder


def test_whole_files_are_read(tmp_path):
    assert load_images("mnist", "train", write_mnist(tmp_path)).pixels.shape == (3, 1, 28, 28)
    assert load_images("mnist", "test", tmp_path).labels.tolist() == [0, 0]


@pytest.mark.parametrize("where", ["given", "DIFFUSION_DATA", "cache"])
@pytest.mark.parametrize("damage", [{"cut": 1000}, {"labels": 2}, {"labels": 4}], ids=str)
def test_half_extracted_files_and_exchanged_labels_are_damaged(
    damage, where, monkeypatch, tmp_path
):
    """Not "not found", and no reason to ask the network."""
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path / "home"))
    monkeypatch.delenv("DIFFUSION_DATA", raising=False)
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", _never)
    place = (
        tmp_path / "home" / ".cache" / "diffusion_data" if where == "cache" else tmp_path / where
    )
    if where == "DIFFUSION_DATA":
        monkeypatch.setenv("DIFFUSION_DATA", str(place))
    write_mnist(place, **damage)
    with pytest.raises(
        ValueError,
        match=r"files of mnist in .* are damaged .*; delete .*MNIST and put or download it again",
    ) as caught:
        load_images("mnist", "train", place if where == "given" else None)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_of_cifar10_are_not_called_missing(monkeypatch, tmp_path):
    """torchvision knows their sums, and says one thing of both."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", _never)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
    with pytest.raises(
        ValueError, match=r"files of cifar10 in .* are damaged .*delete .*cifar-10-batches-py"
    ):
        load_images("cifar10", "train", tmp_path)


def test_a_file_that_may_not_be_read_is_not_damaged(monkeypatch, tmp_path):
    def refused(*arguments, **named):
        raise PermissionError(13, "Permission denied", "train-images-idx3-ubyte")

    monkeypatch.setattr(torchvision.datasets, "MNIST", refused)
    with pytest.raises(PermissionError, match="train-images"):
        load_images("mnist", "train", tmp_path)


def test_a_user_without_a_home_needs_none_where_a_folder_is_given(monkeypatch, tmp_path):
    store = Store(monkeypatch, tmp_path, holds=[tmp_path / "given"])

    def homeless(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    load_images("mnist", "train", tmp_path / "given")
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path / "given"))
    load_images("mnist", "train")
    with pytest.raises(FileNotFoundError, match=r"mnist was not found in .*other"):
        load_images("mnist", "train", tmp_path / "other")
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path / "other"))
    with pytest.raises(
        FileNotFoundError,
        match=r"not found in .*other, and in .*no home folder; set DIFFUSION_DATA",
    ):
        load_images("mnist", "train")
    monkeypatch.delenv("DIFFUSION_DATA")
    with pytest.raises(FileNotFoundError, match="this user has no home folder; set DIFFUSION_DATA"):
        load_images("mnist", "train")
    assert all(not download for _, _, download in store.asked)


def _never(*arguments, **named):
    raise AssertionError("the network was asked")
