"""How strong the ridge of a probe is to be, from the data that the probe is fitted to alone."""

from __future__ import annotations

import math

import torch

from deeprep.metrics import undefined
from deeprep.metrics.classifier import normal_equations
from deeprep.state import ClassScatter

# ridge N over the largest eigenvalue of T: from about what rounding leaves of zero for float32
# features to what leaves next to nothing of the weights.
_DECADES = (-6, 2)
_STEPS_A_DECADE = 4


def choose_ridge(s: ClassScatter) -> float:
    """Choose the ridge of :func:`probe` by generalised cross-validation, from the state alone.

    Of the ridges r with r N = 10^(-6), 10^(-5.75), ..., 10^2 times the largest eigenvalue of T,
    and of r = 0 where T leaves residuals, the one with the least

        GCV(r) = N RSS(r) / (N - 1 - tr H(r))^2,   RSS(r) = sum_i |W z_i + b - onehot(y_i)|^2,

    H(r) the matrix that takes centred targets to fitted ones. It is the leave-one-out error of the
    probe with the leverage of each sample replaced by their average, which is what makes it a
    function of the state: no sample is read again, and none but those of the state counts. Of
    equally good ridges the smallest.

    The probe of a test set needs one: with d >= N - 1 least squares fits any labels. Takes the
    eigenvalues of a d x d matrix. Needs a state with ``full=True``; nan, with a warning, for one
    that holds NaN or Inf.

    Raises
    ------
    UndefinedStatisticError
        Without samples.
    ValueError
        Without ``full=True``.

    Notes
    -----
    Golub, Heath, Wahba, Generalized cross-validation as a method for choosing a good ridge
    parameter, 1979.

    Examples
    --------
    >>> import torch, deeprep
    >>> features, labels = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1])
    >>> s = deeprep.class_scatter(features, labels, full=True)
    >>> ridge = deeprep.metrics.choose_ridge(s)
    >>> round(ridge, 3)
    0.889
    >>> deeprep.metrics.probe(s, ridge).accuracy(torch.tensor([[0.5]]), torch.tensor([0]))
    1.0
    """
    undefined.require_classes(s, "choose_ridge", at_least=1)
    pooled = s.pooled_scatter
    if not undefined.is_finite(s, "choose_ridge", pooled):
        return math.nan
    total, targets, noise = normal_equations(s, pooled)
    eigenvalues, vectors = torch.linalg.eigh(total)
    kept = eigenvalues > noise
    if not bool(kept.any()):  # all samples are one point: there is nothing to shrink
        return 0.0
    explained = (targets @ vectors).square_().sum(dim=0)[kept] / eigenvalues[kept]
    eigenvalues = eigenvalues[kept]
    samples = s.num_samples
    shares = s.counts.double() / samples
    # What no ridge explains, and in how many dimensions: all terms below are >= 0.
    spare = max(0, samples - 1 - len(eigenvalues))
    unexplained = float(samples * (shares * (1.0 - shares)).sum() - explained.sum())
    unexplained = max(0.0, unexplained) if spare else 0.0
    exponents = torch.arange(_DECADES[0] * _STEPS_A_DECADE, _DECADES[1] * _STEPS_A_DECADE + 1)
    penalties = float(eigenvalues[-1]) * 10.0 ** (exponents.to(eigenvalues) / _STEPS_A_DECADE)
    if spare:
        penalties = torch.nn.functional.pad(penalties, (1, 0))
    shrunk = penalties / (eigenvalues.unsqueeze(1) + penalties)  # (P, r): the share taken away
    residuals = unexplained + explained @ shrunk.square()
    scores = samples * residuals / (spare + shrunk.sum(dim=0)).square_()
    return float(penalties[int(scores.argmin())]) / samples
