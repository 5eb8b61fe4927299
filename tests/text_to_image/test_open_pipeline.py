"""A pipeline from the first place that has one; what is said where none has."""

import huggingface_hub.errors as hub
import pytest
import torch

from diffusion_core._validate import UsageError
from diffusion_core.networks import AutoencoderKL
from diffusion_core.text_to_image import (
    STABLE_DIFFUSION,
    build_pipeline,
    open_pipeline,
    save_pipeline,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    net = AutoencoderKL((16, 16, 16), groups=8)
    path = tmp_path_factory.mktemp("pocket")
    save_pipeline(build_pipeline(net, 0.5, tmp_path_factory.mktemp("tokenizer")), path)
    return path


def answer(monkeypatch, error=None):
    """diffusers fails with this error; returns the places it was asked for."""
    from diffusers import DiffusionPipeline

    asked = []

    def from_pretrained(place, **named):
        asked.append((place, named))
        raise error

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    return asked


def because(cause):
    """The error that diffusers raises when the hub has said no."""
    error = OSError("Cannot load model: the model is not fully cached locally")
    error.__cause__ = cause
    return error


def hub_error(kind):
    import httpx

    request = httpx.Request("GET", "https://hub.example/api/models/a/b")
    return kind("401", response=httpx.Response(401, request=request))


def test_a_folder_is_opened_in_single_precision_without_a_bar(folder):
    pipeline = open_pipeline(folder)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {part.dtype for part in parts} == {torch.float32}
    assert pipeline.progress_bar([1]).disable


def test_the_first_place_that_works_is_taken(folder, tmp_path):
    assert open_pipeline([tmp_path / "nothing", str(folder)]).unet is not None


def test_half_precision_on_request(folder):
    assert open_pipeline(folder, dtype=torch.float16).unet.dtype == torch.float16


def test_without_a_gpu_nothing_is_downloaded(monkeypatch):
    asked = answer(monkeypatch, AssertionError("it was asked"))
    with pytest.raises(UsageError, match=r"no GPU here.*2\.1 GB.*T4.*POCKET") as error:
        open_pipeline(STABLE_DIFFUSION)
    assert not asked and "\n" not in str(error.value)


def test_a_processor_is_used_where_it_is_wanted(monkeypatch):
    asked = answer(monkeypatch, because(ConnectionError()))
    with pytest.raises(UsageError):
        open_pipeline("a/b", device="cpu")
    ((place, named),) = asked
    assert place == "a/b"
    assert named == {"torch_dtype": torch.float32, "local_files_only": False}


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (ConnectionError("refused"), "the hub cannot be reached, and no copy lies in the cache"),
        (hub.OfflineModeIsEnabled("offline"), "is HF_HUB_OFFLINE set?"),
        (hub_error(hub.RepositoryNotFoundError), "no such repository, or it is private"),
        (hub_error(hub.GatedRepoError), "licence accepted"),
        (MemoryError("x"), "OSError: Cannot load model"),
    ],
)
def test_the_reason_and_what_to_do_are_said(cause, said, monkeypatch):
    answer(monkeypatch, because(cause))
    with pytest.raises(UsageError) as error:
        open_pipeline(["a/b", "c/d"], device="cpu")
    message = str(error.value)
    assert message.count(said) == 2, message
    assert "Tried a/b: " in message and "; then c/d: " in message
    assert "POCKET" in message and "\n" not in message


def test_a_real_hub_that_is_not_there(monkeypatch):
    """The errors of the library itself, without a network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"the hub cannot be reached"):
        open_pipeline("nobody/nothing-at-all", device="cpu")


def test_a_folder_without_a_pipeline_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    asked = answer(monkeypatch, OSError("no model_index.json"))
    for place in (tmp_path, tmp_path / "away", "./away", "one/two/three"):
        with pytest.raises(UsageError, match="this folder holds no pipeline that can be read"):
            open_pipeline(place)
    assert all(named["local_files_only"] for _, named in asked)


def test_no_place_and_no_device():
    with pytest.raises(UsageError, match="no model is named"):
        open_pipeline([])
    with pytest.raises(UsageError, match="device = 'banana' is not available"):
        open_pipeline("a/b", device="banana")
