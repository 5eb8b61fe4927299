"""A pipeline from the first place that has one, and clear words where none has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffusion_core._validate import UsageError, check_device
from diffusion_core.text_to_image.build import need_diffusers, quiet

if TYPE_CHECKING:
    import diffusers

STABLE_DIFFUSION = (  # CreativeML OpenRAIL-M, both
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
)
_POCKET_HINT = (
    "The pocket model needs neither a network nor a GPU: "
    "open_pipeline(diffusion_core.text_to_image.POCKET)"
)
_NO_GPU = (
    "no GPU here, and Stable Diffusion 1.5, for one, has a thousand million parameters: 2.1 GB in "
    "half precision, twice that in single, and room to paint in; minutes a picture without a GPU "
    "(in Colab: Runtime, Change runtime type, T4; on a processor all the same: device = 'cpu')"
)


def open_pipeline(
    model_ids: str | Path | Sequence[str | Path],
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> diffusers.DiffusionPipeline:
    """The pipeline of the first of these places that has one: a folder of diffusers, or the name
    of a repository on the Hugging Face Hub. Without `device`, on a GPU if there is one; where
    there is none, repositories are not tried, for a download of gigabytes would come first.
    Without `dtype`, in half precision on a GPU, else in single.

    Returns: a DiffusionPipeline without a progress bar; its safety checker is what its folder
        says.
    Raises: UsageError: diffusers is not installed, no place is named, or no place could be
        opened, with what was tried, why it failed, and what to do; as check_device.
    """
    need_diffusers()
    from diffusers import DiffusionPipeline

    places = [model_ids] if isinstance(model_ids, str | Path) else list(model_ids)
    if device is not None:
        check_device(device)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    usual = torch.float16 if target.startswith("cuda") else torch.float32
    tried = []
    for place in places:
        local = _is_folder(place)
        if not local and device is None and target == "cpu":
            tried.append(f"{place}: {_NO_GPU}")
            continue
        try:
            with quiet():
                pipeline = DiffusionPipeline.from_pretrained(
                    str(place), torch_dtype=dtype or usual, local_files_only=local
                )
        except (OSError, ValueError, RuntimeError) as error:
            tried.append(f"{place}: {_why(error, local)}")
            continue
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(target)
    if not tried:
        raise UsageError("no model is named: give a folder or a repository")
    raise UsageError(f"no pipeline could be opened. Tried {'; then '.join(tried)}. {_POCKET_HINT}")


def _is_folder(place: str | Path) -> bool:
    """Whether a place is on this machine: a path, or a name of which there is a folder."""
    looks_local = isinstance(place, Path) or str(place)[:1] in ("/", ".", "~")
    return looks_local or str(place).count("/") > 1 or Path(place).is_dir()


_UNREACHABLE = {
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "NetworkError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "ReadTimeout",
}


def _why(error: BaseException, local: bool) -> str:
    """What went wrong, and what to do."""
    if local:
        return f"this folder holds no pipeline that can be read ({_line(error)})"
    names = {kind.__name__ for one in _causes(error) for kind in type(one).__mro__}
    if "GatedRepoError" in names:
        return "its owner wants the licence accepted: do so on its page, and log in to the hub"
    if "RepositoryNotFoundError" in names:
        return (
            "the hub knows no such repository, or it is private (repositories do vanish: look for "
            "a copy under the same licence)"
        )
    if names & _UNREACHABLE:
        return (
            "the hub cannot be reached, and no copy lies in the cache (is there a network? is "
            "HF_HUB_OFFLINE set? a folder copied from elsewhere opens by its path)"
        )
    return _line(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
