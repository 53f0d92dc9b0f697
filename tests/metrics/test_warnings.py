"""Warnings name the line that asked for the statistic, however deep in deeprep it was found out."""

import math
import sys
import warnings

import pytest
import torch

import deeprep
from deeprep import metrics, reference

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
SAME = torch.ones(8, 2)
SPREAD = torch.eye(8)[LABELS] + 0.1 * torch.arange(8.0).unsqueeze(1)


def state(features):
    return deeprep.class_scatter(features, LABELS, full=True)


def with_zero_mean():
    return state(torch.where(LABELS.unsqueeze(1) == 1, 0.0, SPREAD))


def with_nan():
    return state(torch.where(LABELS.unsqueeze(1) == 1, math.nan, SPREAD))


CASES = {
    "compression": (deeprep.compression, lambda: state(SAME)),
    "corrected compression": (
        lambda s: deeprep.compression(s, corrected=True),
        lambda: state(SAME),
    ),
    "discrimination": (deeprep.discrimination, with_zero_mean),
    "discrimination, nan": (deeprep.discrimination, with_nan),
    "closest_classes": (metrics.closest_classes, with_zero_mean),
    "closest_pairs": (lambda s: metrics.closest_pairs(s, 2), with_zero_mean),
    "jackknife": (metrics.jackknife, with_zero_mean),
    "jackknife, nan": (metrics.jackknife, with_nan),
    "per_class": (metrics.per_class, with_nan),
    "cdnv": (metrics.cdnv, with_nan),
    "cdnv_per_class": (metrics.cdnv_per_class, with_nan),
    "nc1": (metrics.nc1, lambda: state(SAME)),
    "separation_fuzziness": (metrics.separation_fuzziness, lambda: state(SAME)),
    "vci": (metrics.vci, lambda: state(SAME)),
    "alpha_req": (metrics.alpha_req, lambda: state(SPREAD)),
    "equinorm": (metrics.equinorm, lambda: state(SAME)),
    "equiangularity": (metrics.equiangularity, lambda: state(SAME)),
    "etf_error": (metrics.etf_error, lambda: state(SAME)),
    "gnc2": (metrics.gnc2, lambda: state(SAME)),
    "numerical_rank": (metrics.numerical_rank, with_nan),
    "probe": (metrics.probe, with_nan),
    "nearest_class": (lambda s: metrics.nearest_class(s, SPREAD), with_nan),
    "ncc_accuracy": (lambda s: metrics.ncc_accuracy(s, SPREAD, LABELS), with_nan),
    "ncc_mismatch": (lambda s: metrics.ncc_mismatch(s, SPREAD, LABELS), with_nan),
    "choose_ridge": (metrics.choose_ridge, with_nan),
    "self_duality": (lambda s: metrics.self_duality(s, 0.0 * s.means), lambda: state(SPREAD)),
    "directional_cdnv": (
        lambda s: metrics.directional_cdnv(s, SAME, LABELS),
        lambda: state(SAME),
    ),
    "class_ranks": (
        lambda s: metrics.class_ranks(s, SPREAD / 0.0, LABELS),
        lambda: state(SPREAD),
    ),
    "reference.compression": (lambda _: reference.compression(SAME, LABELS), lambda: None),
    "reference.discrimination": (
        lambda _: reference.discrimination(0.0 * SAME, LABELS),
        lambda: None,
    ),
    "reference.self_duality": (
        lambda _: reference.self_duality(SAME, LABELS, torch.ones(4, 2)),
        lambda: None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_caller_is_named(name):
    compute, make = CASES[name]
    s = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compute(s)
    assert caught
    assert {warning.filename for warning in caught} == {__file__}


def test_the_line_of_the_caller_is_named():
    s = state(SAME)
    line = sys._getframe().f_lineno + 2
    with pytest.warns(UserWarning, match="compression is nan") as caught:
        deeprep.compression(s)
    assert caught[0].lineno == line
