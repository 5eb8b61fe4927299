"""Models and schedules on their way to and from diffusers: the one module that knows
that diffusers' timestep is our t - 1.

diffusers itself is imported only by scheduler_from, when it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core._validate import as_time, check_batch, check_choice, check_same_shape
from diffusion_core.ddpm import Variance
from diffusion_core.prediction import EpsModel, eps_from_v, predict_eps
from diffusion_core.schedules import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

TheirSpacing = Literal["trailing", "leading", "linspace"]
Predicts = Literal["epsilon", "v_prediction", "sample"]
_VARIANCE_TYPE = {"posterior": "fixed_small", "beta": "fixed_large"}


class UNetOutput(NamedTuple):
    """What a UNet of diffusers returns: the prediction under the name `sample`."""

    sample: Tensor


class AsEpsModel(nn.Module):
    """A noise predictor of diffusers as an EpsModel; from_diffusers makes it.

    Equation: eps(x_t, t) = unet(x_t, t - 1).sample.
    Shapes: x_t (B, *); t () or (B,), 1 <= t; y (B,), handed on as class_labels; result
        (B, *).
    Raises: ValueError if t is below 1, does not fit the batch, or the output has
        another shape than x_t; TypeError if the output has no `.sample`.
    """

    def __init__(self, unet: Callable[..., Any]) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        labels = {} if y is None else {"class_labels": y}
        output = self.unet(x_t, _index(t, x_t), **labels)
        eps = getattr(output, "sample", None)
        if not isinstance(eps, Tensor):
            raise TypeError(
                f"the UNet returned {type(output).__name__}, expected an output with a tensor "
                "`.sample`, as UNet2DModel gives with return_dict=True"
            )
        check_same_shape("the UNet's sample", eps, "x_t", x_t)
        return eps


class AsDiffusersUNet(nn.Module):
    """An EpsModel in the place of a UNet2DModel of diffusers; to_diffusers makes it.

    Equation: unet(x, timestep).sample = eps(x, timestep + 1).
    Shapes: sample (B, *); timestep a number, () or (B,), 0 <= timestep; class_labels
        (B,), handed on as y; result's `.sample` (B, *).
    Raises: ValueError if timestep is negative or does not fit the batch.
    """

    _anchor: Tensor

    def __init__(
        self,
        eps_model: EpsModel,
        sample_size: int | tuple[int, int] | None,
        channels: int | None,
    ) -> None:
        super().__init__()
        self.eps_model = eps_model
        self._size = sample_size, channels
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # moves with .to()

    @property
    def config(self) -> SimpleNamespace:
        """The sizes that a pipeline asks for: sample_size and in_channels.

        Raises: ValueError if to_diffusers was not told one of them.
        """
        sample_size, channels = self._size
        if sample_size is None or channels is None:
            raise ValueError(
                f"sample_size = {sample_size}, channels = {channels}: a pipeline asks how large "
                "its images are; give both, e.g. to_diffusers(net, sample_size=28, channels=1)"
            )
        return SimpleNamespace(sample_size=sample_size, in_channels=channels, out_channels=channels)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.parameters(), self._anchor).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model's weights."""
        return next(self.parameters(), self._anchor).dtype

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetOutput | tuple[Tensor]:
        index = as_time(timestep, 0, math.inf, "timestep")
        check_batch(index, sample, "timestep")
        whole = bool((index == index.round()).all())
        t = (index + 1).to(torch.int64 if whole else torch.float32).expand(sample.shape[0])
        y = () if class_labels is None else (class_labels,)
        eps = self.eps_model(sample, t, *y)
        return UNetOutput(eps) if return_dict else (eps,)


class AsTextNet(nn.Module):
    """A UNet of diffusers that reads text as a net of guidance.py; text_net makes it.

    Equation: eps(x_t, t, y) from unet(x_t, t - 1, y).sample: the same for "epsilon",
        eps_from_v for "v_prediction", predict_eps for "sample".
    Shapes: x_t (B, *); t () or (B,), 1 <= t; y (B, tokens, width); result (B, *).
    Raises: ValueError if t does not fit, or the output has another shape than x_t.
    """

    def __init__(
        self,
        unet: Callable[..., Any],
        schedule: NoiseSchedule,
        kind: Predicts,
    ) -> None:
        super().__init__()
        self.unet, self.schedule, self.kind = unet, schedule, kind

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        said = self.unet(x_t, _index(t, x_t), encoder_hidden_states=y).sample
        check_same_shape("the UNet's sample", said, "x_t", x_t)
        if self.kind == "v_prediction":
            return eps_from_v(said, x_t, t, self.schedule)
        if self.kind == "sample":
            return predict_eps(said, x_t, t, self.schedule)
        return said


def _index(t: Tensor, x_t: Tensor) -> Tensor:
    """diffusers' timestep for our t, one an image: t - 1, whole numbers where t is one."""
    time = as_time(t, 1, math.inf)
    check_batch(time, x_t)
    whole = bool((time == time.round()).all())
    index = (time - 1).to(x_t.device, torch.int64 if whole else torch.float32)
    return index.expand(x_t.shape[0])


def text_net(unet: Callable[..., Any], scheduler: Any) -> AsTextNet:
    """The U-Net of a text-to-image pipeline as a net that classifier_free_guidance takes:
    net(x_t, t, y) with y what the text encoder says, and the empty prompt's as null.

    Equation: as AsTextNet, with the scheduler's betas and its prediction_type.
    Shapes: unet(x (B, *), timestep (B,), encoder_hidden_states=(B, tokens, width)) -> an
        object with `.sample` (B, *).
    Returns: an nn.Module; for samplers, condition(net, y) is an EpsModel.
    Raises: as schedule_from; ValueError for a prediction_type that is not known.
    """
    kind = scheduler.config.prediction_type
    check_choice("prediction_type", kind, Predicts)
    return AsTextNet(unet, schedule_from(scheduler), kind)


def from_diffusers(unet: Callable[..., Any]) -> AsEpsModel:
    """A noise predictor of diffusers (prediction_type "epsilon") as an EpsModel that
    our samplers, losses and train() take.

    Equation: eps(x_t, t) = unet(x_t, t - 1).sample.
    Shapes: unet(sample (B, *), timestep (B,)) -> an object with `.sample` (B, *).
    Returns: an nn.Module with the UNet's parameters, called as net(x_t, t) or net(x_t,
        t, y).
    Raises: TypeError if unet cannot be called.
    """
    if not callable(unet):
        raise TypeError(f"unet is a {type(unet).__name__}, expected a UNet2DModel or a function")
    return AsEpsModel(unet)


def to_diffusers(
    eps_model: EpsModel,
    *,
    sample_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> AsDiffusersUNet:
    """An EpsModel as the `unet` of DDPMPipeline and of diffusers' training scripts.

    A pipeline needs `sample_size`; `channels` is read off our UNet. The result cannot
    be saved by save_pretrained: save the EpsModel.

    Equation: unet(x, timestep).sample = eps(x, timestep + 1).
    Shapes: eps_model(x_t (B, *), t (B,)) -> (B, *).
    Returns: an nn.Module, called as unet(sample, timestep).sample.
    Raises: TypeError if eps_model cannot be called.
    """
    if not callable(eps_model):
        raise TypeError(
            f"eps_model is a {type(eps_model).__name__}, expected a function (x_t, t) -> eps"
        )
    channels = getattr(eps_model, "channels", None) if channels is None else channels
    return AsDiffusersUNet(eps_model, sample_size, channels)


def scheduler_from(
    schedule: NoiseSchedule,
    *,
    variance: Variance = "posterior",
    clip: bool = False,
    spacing: TheirSpacing = "trailing",
) -> DDPMScheduler:
    """The DDPMScheduler of diffusers that walks our chain: our betas, rounded to its
    float32, and its defaults replaced by ours.

    Equation: their betas[t - 1] is beta_t; variance_type "fixed_small" is our variance
        "posterior", "fixed_large" our "beta"; clip_sample is our clip_x0.
    Shapes: schedule of T steps; the scheduler has num_train_timesteps = T.
    Returns: a diffusers.DDPMScheduler.
    Raises: ImportError, saying what to install, without diffusers; ValueError for an
        unknown variance or spacing ("quadratic" is not known to diffusers).
    """
    check_choice("variance", variance, Variance)
    check_choice("spacing", spacing, TheirSpacing)
    try:
        from diffusers import DDPMScheduler
    except ImportError as error:
        raise ImportError(
            "scheduler_from needs the library diffusers, which is not installed; "
            "pip install diffusers, or install this package with its extra [compare]"
        ) from error
    return DDPMScheduler(
        num_train_timesteps=schedule.T,
        trained_betas=schedule.betas.tolist(),
        variance_type=_VARIANCE_TYPE[variance],
        clip_sample=clip,
        prediction_type="epsilon",
        timestep_spacing=spacing,
    )


def schedule_from(scheduler: Any) -> NoiseSchedule:
    """The NoiseSchedule of a diffusers scheduler, computed in float64 from its betas.

    Equation: alpha_bar_t = prod_{r=1..t} (1 - betas[r - 1]), alpha_bar_0 = 1.
    Shapes: scheduler.betas (T,).
    Returns: a schedule of T steps.
    Raises: TypeError if the scheduler has no betas; ValueError if they reach 1
        (rescale_betas_zero_snr), which no NoiseSchedule allows.
    """
    betas = getattr(scheduler, "betas", None)
    if not isinstance(betas, Tensor):
        raise TypeError(
            f"{type(scheduler).__name__} has no tensor `betas`; give a scheduler of diffusers such "
            "as DDPMScheduler"
        )
    return NoiseSchedule.from_betas(betas)
