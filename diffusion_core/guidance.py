"""Guidance: every function takes a model and returns one, so that no sampler knows of it.

A net here is a function (x_t (B, *), t (B,), y) -> eps (B, *); y holds one label an image,
(B,), or one caption, (B, ...). An EpsModel is such a net without y. Where a gradient is
needed it is taken here, also inside a sampler's torch.no_grad(), and the result carries
none. Results keep the dtype and device of x_t. What is wrong with a number or a label
raises at the call; what only the batch can show, when the model is asked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_core._validate import (
    Generators,
    check_finite,
    check_generators,
    check_same_shape,
    check_share,
)
from diffusion_core.prediction import EpsModel, predict_x0
from diffusion_core.schedules import NoiseSchedule

LabelledNet = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def condition(net: LabelledNet, y: Tensor | None) -> EpsModel:
    """The net as an EpsModel that always asks for y; None asks for no label at all.

    Equation: eps(x_t, t) = eps_theta(x_t, t, y).
    Shapes: y (B,), or (B, ...).
    Raises: ValueError if a label is out of the net's range (0..classes, the last one
        the null label), or the net takes none; when asked, if there is not one an
        image.
    """
    _check_range(net, y)

    def conditional(x_t: Tensor, t: Tensor) -> Tensor:
        _check_length(y, x_t)
        return net(x_t, t, y).to(x_t)

    return conditional


def drop_labels(y: Tensor, null: int | Tensor, p: float, *, generator: Generators = None) -> Tensor:
    """Labels for training without a classifier: each sample's is dropped, by itself, with
    probability p.

    Equation: Ho & Salimans 2022 alg. 1, c <- null with probability p_uncond.
    Shapes: y (B,) or (B, ...); null a number, or a tensor of one sample's shape.
    Returns: a new tensor, shape, dtype and device of y.
    Raises: ValueError if p is not in 0..1, or the number of generators is not 1 or B.
    """
    check_share("p", p)
    check_generators(generator, len(y))
    if generator is None or isinstance(generator, torch.Generator):
        u = _uniform(len(y), generator)
    else:
        u = torch.tensor([_uniform(1, g).item() for g in generator])
    dropped = (u < p).to(y.device).reshape(-1, *[1] * (y.ndim - 1))
    return torch.where(dropped, _null_for(y, null), y)


def classifier_free_guidance(
    net: LabelledNet,
    y: Tensor,
    null: int | Tensor | None,
    guidance_scale: float,
    *,
    rescale: float = 0.0,
) -> EpsModel:
    """Guidance by the net itself: away from what it predicts without a label. Both
    predictions come from one call with a batch of 2B; guidance_scale 1 (the conditional
    model) and 0 (the unconditional one) need only one of them, and a batch of B.

    Equation: Ho & Salimans 2022 eq. 6 with gamma = guidance_scale = 1 + w:

            eps = eps(null) + gamma (eps(y) - eps(null))
    Shapes: y (B,) or (B, ...); null a number or one sample's shape, None for
        net.null_label. (Another label in its place: guidance away from that one.)
    Raises: ValueError if guidance_scale is not finite, rescale (rescale_guidance's phi)
        not in 0..1, the net has no null label; as condition().
    """
    check_finite("guidance_scale", guidance_scale)
    check_share("rescale", rescale)
    nothing = _null_for(y, _null_label(net) if null is None else null)
    conditional, unconditional = condition(net, y), condition(net, nothing)
    if guidance_scale == 1:
        return conditional
    if guidance_scale == 0 and rescale == 0:
        return unconditional

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        _check_length(y, x_t)
        t = torch.as_tensor(t).expand(x_t.shape[0])
        both = net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, nothing]))
        eps_y, eps_null = both.chunk(2)
        eps = eps_null + guidance_scale * (eps_y - eps_null)
        return (rescale_guidance(eps, eps_y, rescale) if rescale else eps).to(x_t)

    return guided


def rescale_guidance(eps: Tensor, eps_y: Tensor, phi: float) -> Tensor:
    """Guided noise brought back towards the spread of the conditional noise: strong
    guidance enlarges it, and images get too bright and too plain.

    Equation: Lin et al. 2024 sec. 3.4, with std over the elements of one image:

            phi eps std(eps_y) / std(eps) + (1 - phi) eps
    Shapes: eps, eps_y (B, *).
    Returns: (B, *); an image whose eps has no spread stays as it is.
    Raises: ValueError if phi is not in 0..1 or the shapes differ.
    """
    check_share("phi", phi)
    check_same_shape("eps", eps, "eps_y", eps_y)
    wanted, found = _spread(eps_y), _spread(eps)
    factor = torch.where(found > 0, wanted / found, 1.0)
    return (phi * factor + (1 - phi)) * eps


def guidance_interval(guided: EpsModel, unguided: EpsModel, low: float, high: float) -> EpsModel:
    """Guidance for the times low < t <= high only: early it costs variety, late it does
    little. Each image's time decides for itself; a model is asked only if one needs it.

    Equation: Kynkäänniemi et al. 2024, gamma(t) = gamma if low < t <= high, else 1 (with
        unguided = condition(net, y)). Their interval is in noise levels:
        schedule.time_at turns one into t.
    Raises: ValueError unless low < high.
    """
    if not low < high:
        raise ValueError(f"low = {low} must be below high = {high}")

    def limited(x_t: Tensor, t: Tensor) -> Tensor:
        inside = (t > low) & (t <= high)
        if bool(inside.all()):
            return guided(x_t, t)
        if not bool(inside.any()):
            return unguided(x_t, t)
        inside = inside.to(x_t.device).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.where(inside, guided(x_t, t), unguided(x_t, t))

    return limited


def classifier_guidance(
    eps_model: EpsModel,
    log_prob: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    scale: float = 1.0,
) -> EpsModel:
    """Guidance by a classifier that has learnt noisy images: up the gradient of log p(y |
    x_t). At scale 1 it is Bayes' rule, and the result the conditional model.

    Equation: Dhariwal & Nichol 2021 alg. 2, with the gradient scale of its heading:

            eps - sqrt(1 - alpha_bar_t) scale grad_{x_t} log p(y | x_t)
    Shapes: log_prob(x_t (B, *), t) -> (B,).
    Raises: ValueError if scale is not finite; when asked, if log_prob's shape is
        not (B,).
    """
    check_finite("scale", scale)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            gradient = _gradient(log_prob(x, t), x, "log_prob")
        noise_rate = schedule.at(t, x_t)[1]
        return (eps_model(x_t, t) - noise_rate * scale * gradient).detach().to(x_t)

    return guided


def clip_guidance(
    eps_model: EpsModel,
    similarity: Callable[[Tensor], Tensor],
    schedule: NoiseSchedule,
    scale: float,
) -> EpsModel:
    """Guidance by a judge that knows clean images only, such as CLIP: it sees the predicted
    x_0, and its gradient goes back through the network to x_t.

    Equation: classifier_guidance with similarity(x_0) in place of log p(y | x_t), as in
        Crowson's CLIP-guided diffusion (code, no paper), and DDPM eq. 15:

            x_0 = (x_t - sqrt(1 - alpha_bar_t) eps(x_t, t)) / sqrt(alpha_bar_t)
            eps - sqrt(1 - alpha_bar_t) scale grad_{x_t} similarity(x_0)
    Shapes: similarity(x_0 (B, *)) -> (B,), larger for better images.
    Raises: ValueError if scale is not finite; when asked, if similarity's shape is not
        (B,).
    """
    check_finite("scale", scale)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            eps = eps_model(x, t)
            x_0 = predict_x0(eps, x, t, schedule)
            gradient = _gradient(similarity(x_0), x, "similarity")
        noise_rate = schedule.at(t, x_t)[1]
        return (eps - noise_rate * scale * gradient).detach().to(x_t)

    return guided


def _gradient(value: Tensor, x: Tensor, name: str) -> Tensor:
    """The gradient of each image's value (B,) with respect to that image, (B, *)."""
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"{name} returned shape {tuple(value.shape)}, expected ({x.shape[0]},): one number "
            "an image"
        )
    return torch.autograd.grad(value.sum(), x)[0]


def _spread(x: Tensor) -> Tensor:
    """The standard deviation over each image's elements, (B, 1, ..., 1)."""
    return x.flatten(1).std(1, correction=0).reshape(-1, *[1] * (x.ndim - 1))


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    """n numbers, uniform in [0, 1), on the CPU."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(n, generator=generator, device=device).cpu()


def _null_for(y: Tensor, null: int | Tensor) -> Tensor:
    """The null label for every sample of y."""
    return torch.as_tensor(null, dtype=y.dtype, device=y.device).expand_as(y)


def _null_label(net: LabelledNet) -> int | Tensor:
    if not hasattr(net, "null_label"):
        raise ValueError("the net has no null_label of its own; give the label null")
    return net.null_label


def _check_range(net: LabelledNet, y: Tensor | None) -> None:
    """Raise ValueError if the net says how many classes it has and a label is none of
    them."""
    if y is None or not hasattr(net, "classes"):
        return
    if net.classes is None:
        raise ValueError("labels were given, but the net was built without classes")
    wrong = y[(y < 0) | (y > net.classes)]
    if len(wrong):
        raise ValueError(
            f"label {wrong[0].item()} is out of range: 0..{net.classes - 1}, or {net.classes} "
            "for the null label"
        )


def _check_length(y: Tensor | None, x_t: Tensor) -> None:
    if y is not None and len(y) != len(x_t):
        raise ValueError(f"{len(y)} labels for a batch of {len(x_t)} images")
