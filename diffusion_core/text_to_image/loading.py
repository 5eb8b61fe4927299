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

STABLE_DIFFUSION = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
)
_POCKET_HINT = (
    "The pocket model needs neither a network nor a GPU: from diffusion_core.text_to_image "
    "import POCKET; MODEL_ID = POCKET"
)
_NO_GPU = (
    "{name} is to come from a hub, and there is no GPU here. Stable Diffusion 1.5 has about 1.07 "
    "thousand million parameters: 2.1 GB in half precision, 4.3 GB in single precision, and as "
    "much again while it paints; a picture takes seconds on a GPU of 6 GB or more (Colab's T4 has "
    "16), and many minutes on a processor. In Colab: Runtime, Change runtime type, T4 GPU. To use "
    "the processor all the same, say device='cpu'. " + _POCKET_HINT
)


def open_pipeline(
    model_ids: str | Path | Sequence[str | Path],
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> diffusers.DiffusionPipeline:
    """The pipeline of the first of these places that has one: a folder, or a repository's name
    on the Hugging Face Hub. Without `device`, on a GPU if there is one, and only a folder is
    opened on a processor; without `dtype`, in half precision on a GPU, else in single.

    Returns: a DiffusionPipeline on the device, its safety checker as its folder says.
    Raises: UsageError: diffusers is not installed; no place is named; nothing but a hub's model
        and no GPU, with what one needs; or no place could be opened, with what was tried, why
        it failed, and what to do; as check_device.
    """
    need_diffusers()
    from diffusers import DiffusionPipeline

    places = [model_ids] if isinstance(model_ids, str | Path) else list(model_ids)
    if not places:
        raise UsageError("no model is named: give a folder or a repository. " + _POCKET_HINT)
    if device is not None:
        check_device(device)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    half = torch.float16 if target.startswith("cuda") else torch.float32
    tried: list[str] = []
    for place in places:
        local = _is_folder(place)
        if not local and device is None and target == "cpu":
            tried.append(_NO_GPU.format(name=str(place)))
            continue
        try:
            with quiet():
                pipeline = DiffusionPipeline.from_pretrained(
                    str(place), torch_dtype=dtype or half, local_files_only=local
                )
        except (OSError, ValueError) as error:
            tried.append(f"{place}: {_why(error, local)}")
            continue
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(target)
    if all(one.endswith(_POCKET_HINT) for one in tried):
        raise UsageError(tried[0])
    raise UsageError(
        "no pipeline could be opened. Tried, in this order:\n"
        + "\n".join(f"  {i}. {one.removesuffix(_POCKET_HINT)}" for i, one in enumerate(tried, 1))
        + f"\n{_POCKET_HINT}"
    )


def _is_folder(place: str | Path) -> bool:
    """Whether a place is one on this machine. A name with a single slash may be both: it is a
    folder if there is one."""
    path = Path(place)
    looks_local = isinstance(place, Path) or path.is_absolute() or str(place)[:1] in (".", "~")
    return looks_local or path.is_dir() or str(place).count("/") > 1


def _why(error: BaseException, local: bool) -> str:
    """What went wrong, and what to do."""
    if local:
        return f"this folder holds no pipeline that can be read ({_line(error)})"
    names = {type(one).__name__ for one in _causes(error)}
    if "GatedRepoError" in names:
        return "its owner wants its licence accepted: do so on its page, and log in to the hub"
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        return (
            "the hub has no such repository, or it is private. Repositories do vanish; look for "
            "a copy with the same licence, or for a misspelt name"
        )
    if names & _UNREACHABLE or any(isinstance(one, ConnectionError) for one in _causes(error)):
        return (
            "the hub could not be reached, and no copy lies in the cache. Is there a network, a "
            "proxy to be named in HTTPS_PROXY, or HF_HUB_OFFLINE set? A copy of the folder, made "
            "where there is a network, can be opened by its path"
        )
    return _line(error)


_UNREACHABLE = {
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "NetworkError",
    "ConnectionError",
    "ProxyError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
