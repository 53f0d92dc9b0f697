"""NeuralCollapse: the four measures of Papyan, Han and Donoho at the input of the classifier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from deeprep import metrics
from deeprep.base.validate import UndefinedStatisticError
from deeprep.metrics import undefined
from deeprep.report.layer_metrics import PAIR_WORK
from deeprep.state import ClassScatter

_MEASURES = (
    ("NC1", "nc1", ".3g"),
    ("NC2 equinorm", "equinorm", ".3g"),
    ("equiangular", "equiangularity", ".3g"),
    ("ETF", "etf_error", ".3g"),
    ("NC3", "self_duality", ".3g"),
    ("NC4", "ncc_mismatch", ".2%"),
    ("accuracy", "model_accuracy", ".1%"),
)


@dataclass(frozen=True)
class NeuralCollapse:
    """NC1 to NC4 of a model, of the features that enter its own classifier; and its accuracy.

    None where one cannot be had, for the reason that `reasons` has under its name, or under
    "classifier" for all of them. In the `test` of a report, NC1 to NC3 are of the test data's means
    and NC4 is the share of test samples whose decision is not the nearest mean of the training
    data.

    Attributes
    ----------
    classifier
        Name of the module.
    num_features
        d, of its input.
    nc1
        Tr(Sigma_W Sigma_B^+) / K, `metrics.nc1`.
    equinorm, equiangularity, etf_error
        NC2: deviation of the centred means from equal lengths, equal angles, and a simplex.
    self_duality
        NC3: distance of the classifier's weight from the centred means, `metrics.self_duality`.
    ncc_mismatch
        NC4: share of samples for which the model does not decide as the nearest class mean does.
    model_accuracy
        Share of samples for which the model decides right.
    reasons
        Name of a field -> why it is None or nan.

    Notes
    -----
    Papyan, Han, Donoho, Prevalence of neural collapse during the terminal phase of deep learning
    training, 2020. The ETF error is that of Zhu et al. 2021.

    Examples
    --------
    >>> import torch, deeprep
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> loader = [(torch.randn(40, 4), torch.arange(40) % 2)]
    >>> report = deeprep.analyze(model, loader, num_classes=2, full=True, accuracy=True)
    >>> report.neural_collapse.classifier, 0 <= report.neural_collapse.ncc_mismatch <= 1
    ('2', True)
    """

    classifier: str | None = None
    num_features: int | None = None
    nc1: float | None = None
    equinorm: float | None = None
    equiangularity: float | None = None
    etf_error: float | None = None
    self_duality: float | None = None
    ncc_mismatch: float | None = None
    model_accuracy: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def lines(self, prefix: str = "") -> list[str]:
        """The measures that there are, and why there is not one of the others, in short lines."""
        headings = {name: heading for heading, name, _ in _MEASURES}
        told = [
            [f"{headings[name]} {getattr(self, name):{spec}}" for _, name, spec in measures]
            for measures in (
                [m for m in group if getattr(self, m[1]) is not None]
                for group in (_MEASURES[:4], _MEASURES[4:])
            )
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            reasons.setdefault(reason, []).append(headings[name])
        missing = [f"no {', '.join(names)}: {reason}" for reason, names in reasons.items()]
        return [f"  {prefix}{line}" for line in (*map(", ".join, told), *missing) if line]


def measure_collapse(
    classifier: str, s: ClassScatter, weight: Tensor | None, shares: tuple[float, float] | str
) -> NeuralCollapse:
    """Measure what can be had.

    Parameters
    ----------
    classifier
        Its name.
    s
        State of the features that enter it.
    weight
        (K, d) of the classifier; None where it is no linear map.
    shares
        NC4 and the accuracy of the model, or the reason why they are not known.
    """
    reasons: dict[str, str] = {}
    values: dict[str, float | None] = {}

    def measure(name: str, compute: Callable[[], float]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                values[name] = compute()
            except UndefinedStatisticError as error:
                reasons[name] = str(error)
                return
        if not math.isfinite(values[name] or 0.0):
            reasons[name] = str(caught[-1].message) if caught else "not defined"

    if s.full:
        measure("nc1", lambda: metrics.nc1(s))
    else:
        reasons["nc1"] = "needs full=True"
    measure("equinorm", lambda: metrics.equinorm(s))
    work = undefined.count_present(s) ** 2 * s.num_features
    for name in ("equiangularity", "etf_error"):
        if work <= PAIR_WORK:
            measure(name, lambda name=name: getattr(metrics, name)(s))  # type: ignore[misc]
        else:
            reasons[name] = f"K^2 d = {work:.1e} products for all pairs of classes"
    if weight is None:
        reasons["self_duality"] = f"the output of {classifier!r} is not W z + b of its input"
    else:
        measure("self_duality", lambda: metrics.self_duality(s, weight))
    if isinstance(shares, str):
        reasons |= dict.fromkeys(("ncc_mismatch", "model_accuracy"), shares)
    else:
        values |= {"ncc_mismatch": shares[0], "model_accuracy": shares[1]}
    return NeuralCollapse(classifier, s.num_features, **values, reasons=reasons)
