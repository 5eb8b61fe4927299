"""How good, how varied and how new are generated images? Distances between sets of
features, agreement, nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_core._validate import check_labels


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D) of a set of features, float64, and how many there
    were."""

    mean: Tensor
    cov: Tensor
    n: int


class Estimate(NamedTuple):
    """A mean over repetitions and their standard deviation."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.std:.1g} (n = {self.n})"


def estimate(values: list[float]) -> Estimate:
    """Mean and sample standard deviation of repeated measurements.

    Raises: ValueError for fewer than two.
    """
    if len(values) < 2:
        raise ValueError(
            f"{len(values)} measurement(s) have no spread; repeat with at least two seeds"
        )
    v = torch.tensor(values, dtype=torch.float64)
    return Estimate(v.mean().item(), v.std().item(), len(values))


def moments(features: Tensor) -> Moments:
    """Mean and covariance of a set of features.

    Shapes: features (N, D).
    Raises: ValueError unless N >= 2.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features {tuple(features.shape)}: expected (N, D) with N >= 2")
    f = features.double().cpu()
    return Moments(f.mean(0), torch.cov(f.T).reshape(f.shape[1], f.shape[1]), len(f))


def moments_at_shares(features: Tensor, y: Tensor, shares: Tensor) -> Moments:
    """Mean and covariance of a set of features in which each label counts as much as its share
    says, however often it is there: for distances that the luck of the labels does not enter.

    Equation: weights w_i = shares[y_i] / (how many have y_i), divided by their sum;

            m = sum_i w_i f_i,   C = sum_i w_i (f_i - m)(f_i - m)^T / (1 - sum_i w_i^2)

        With equal weights these are moments(features).
    Shapes: features (N, D), y (N,) int64, shares (K,), in proportion to the shares of 0..K-1.
    Raises: ValueError unless N >= 2, y holds N whole numbers in 0..K-1, and all of these have
        a share above 0.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features {tuple(features.shape)}: expected (N, D) with N >= 2")
    check_labels(y, len(shares), len(features), "y")
    f, y, shares = features.double().cpu(), y.cpu(), shares.double().cpu()
    if not bool((shares[y] > 0).all()):
        raise ValueError(f"shares = {shares.tolist()}: a label of y has none")
    weight = (shares / torch.bincount(y, minlength=len(shares)))[y]
    weight = weight / weight.sum()
    mean = weight @ f
    offset = f - mean
    cov = (weight[:, None] * offset).T @ offset / (1 - weight.square().sum())
    return Moments(mean, cov, len(f))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet (2-Wasserstein) distance between two normal distributions with
    these moments.

    Equation: Heusel et al. 2017 eq. 6

            ||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))
    Returns: a number >= 0. It is biased upwards, the more the fewer samples: compare
        only at the same n.
    Raises: ValueError if the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions cannot be compared"
        )
    root_a = _sqrt_psd(a.cov)
    cross = torch.linalg.eigvalsh(root_a @ b.cov @ root_a).clamp(min=0).sqrt().sum()
    return max(
        0.0, ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross).item()
    )


def _sqrt_psd(matrix: Tensor) -> Tensor:
    """The symmetric square root of a covariance matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy between two sets of features, unbiased; near 0,
    either sign, if they come from one source.

    Equation: Binkowski et al. 2018 sec. 4 (KID), kernel k(u, v) = (u.v / D + 1)^3; mean
        of k over pairs within x, within y, less twice the mean between them.
    Shapes: x (N, D), y (M, D).
    Raises: ValueError if the dimensions differ or a set has fewer than two.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)}: expected (N, D) and (M, D) with N, M >= 2"
        )
    x, y = x.double(), y.double()
    k_xx, k_yy, k_xy = ((u @ v.T / x.shape[1] + 1) ** 3 for u, v in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within_x = (k_xx.sum() - k_xx.trace()) / (n * (n - 1))
    within_y = (k_yy.sum() - k_yy.trace()) / (m * (m - 1))
    return (within_x + within_y - 2 * k_xy.mean()).item()


def nearest_neighbours(x: Tensor, data: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """For each image, its distance to the nearest image of the data, and that image's
    index.

    Equation: Euclidean distance between pixels, in units of the [-1, 1] range.
    Shapes: x (N, *), data (M, *); results (N,) and (N,) int64.
    Raises: ValueError if the images' shapes differ.
    """
    if x.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"images of shape {tuple(x.shape[1:])} cannot be compared with data of shape "
            f"{tuple(data.shape[1:])}"
        )
    flat, parts = data.float().flatten(1), x.float().flatten(1).split(chunk)
    index = torch.cat([torch.cdist(part, flat).argmin(1) for part in parts])
    # cdist's own distances are matrix products: a copy would not come out at 0
    return (torch.cat(parts) - flat[index]).norm(dim=1), index


def agreement(predicted: Tensor, wanted: Tensor) -> float:
    """The share of labels that agree.

    Shapes: both (N,).
    Raises: ValueError if the shapes differ.
    """
    if predicted.shape != wanted.shape:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and wanted {tuple(wanted.shape)} must have the "
            "same shape"
        )
    return (predicted.cpu() == wanted.cpu()).double().mean().item()
