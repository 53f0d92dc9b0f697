"""Cosines between class means: one search behind all that asks for the largest of them."""

import math

import pytest
import torch

import deeprep
from deeprep import LayerReport, UndefinedStatisticError, metrics
from deeprep.metrics import class_means, cosines


def scatter_of_means(means):
    means = torch.as_tensor(means, dtype=torch.float64)
    return deeprep.class_scatter(means, torch.arange(len(means)))


def test_orthogonal_means_have_discrimination_one():
    s = scatter_of_means(3.0 * torch.eye(4, 7))
    assert deeprep.discrimination(s) == 1.0
    assert metrics.closest_classes(s) == (0, 1, 0.0)


def test_equal_and_opposite_directions():
    assert deeprep.discrimination(scatter_of_means([[1, 2], [2, 4], [-1, 1]])) == pytest.approx(0)
    assert deeprep.discrimination(scatter_of_means([[1, 2], [-3, -6]])) == pytest.approx(2)


@pytest.mark.filterwarnings("ignore:3 of 6 classes")
def test_closest_pair_is_named_by_class():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    s = deeprep.class_scatter(features, torch.tensor([1, 3, 4]), 6)
    first, second, cosine = metrics.closest_classes(s)
    assert (first, second) == (3, 4)
    assert cosine == pytest.approx(0.1 / math.hypot(1.0, 0.1))


def test_zero_mean_has_no_direction():
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    s = deeprep.class_scatter(features, torch.arange(3))
    with pytest.warns(UserWarning, match=r"discrimination is nan.* 1 class \(1\) are zero"):
        assert math.isnan(deeprep.discrimination(s))
    with pytest.warns(UserWarning, match="closest_classes is nan"):
        first, second, cosine = metrics.closest_classes(s)
    assert (first, second) == (-1, -1)
    assert math.isnan(cosine)
    # Centred, all three have one.
    assert deeprep.discrimination(s, centered=True) > 0


def random_state(classes, width, integers=False):
    draw = (
        torch.randint(-2, 3, (3 * classes, width)) if integers else torch.randn(3 * classes, width)
    )
    return deeprep.class_scatter(draw.double() + 0.5, torch.arange(3 * classes) % classes)


def every_pair(s):
    """All pairs by falling cosine, from the matrix of them."""
    unit = s.means / s.means.norm(dim=1, keepdim=True)
    matrix = (unit @ unit.T).tolist()
    pairs = [(i, j, matrix[i][j]) for i in range(len(unit)) for j in range(i + 1, len(unit))]
    return sorted(pairs, key=lambda pair: (-round(pair[2], 9), pair[:2]))


@pytest.mark.parametrize(("classes", "count"), [(2, 1), (9, 5), (9, 36), (40, 1), (40, 50)])
@pytest.mark.parametrize("entries", [1, 200, 1 << 22])
def test_closest_pairs_are_the_largest_cosines_whatever_the_tiles(
    monkeypatch, classes, count, entries
):
    monkeypatch.setattr(class_means, "TILE_ENTRIES", entries)
    s = random_state(classes, 3)
    pairs = metrics.closest_pairs(s, count)
    assert len(pairs) == count
    for found, expected in zip(pairs, every_pair(s), strict=False):
        assert isinstance(found, metrics.ClosestClasses)
        assert found[:2] == expected[:2]
        assert found.cosine == pytest.approx(expected[2], abs=1e-12)


@pytest.mark.parametrize("count", [1, 4, 50, 79])
@pytest.mark.parametrize("entries", [1, 200, 1 << 22])
def test_of_equal_cosines_the_first_pairs_are_kept(monkeypatch, count, entries):
    monkeypatch.setattr(class_means, "TILE_ENTRIES", entries)
    s = scatter_of_means(torch.eye(80))
    expected = tuple((0, second, 0.0) for second in range(1, count + 1))
    assert metrics.closest_pairs(s, count) == expected


@pytest.mark.parametrize("entries", [1, 7, 1 << 22])
def test_of_equally_close_classes_the_first_is_nearest(monkeypatch, entries):
    monkeypatch.setattr(class_means, "TILE_ENTRIES", entries)
    # Class 2 lies between 0 and 4, class 3 between 1 and 4; all other pairs are orthogonal.
    means = [[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 1.0], [0, 1.0, 1.0], [0, 0, 1.0]]
    assert metrics.per_class(scatter_of_means(means)).nearest.tolist() == [2, 3, 0, 1, 2]


def test_more_pairs_than_there_are():
    s = scatter_of_means([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    pairs = metrics.closest_pairs(s, 100)
    assert [pair[:2] for pair in pairs] == [(1, 2), (0, 2), (0, 1)]
    assert metrics.closest_pairs(s, 3) == pairs


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize(("classes", "width"), [(2, 3), (10, 4), (33, 700), (90, 5)])
@pytest.mark.parametrize("entries", [300, 1 << 22])
def test_one_discrimination_to_the_last_bit(monkeypatch, classes, width, entries, integers):
    monkeypatch.setattr(class_means, "TILE_ENTRIES", entries)
    s = random_state(classes, width, integers)
    expected = deeprep.discrimination(s)
    assert 1.0 - metrics.closest_classes(s).cosine == expected
    assert 1.0 - metrics.closest_pairs(s, 7)[0].cosine == expected
    assert 1.0 - float(metrics.per_class(s).cosine.max()) == expected
    (layer,) = LayerReport.from_scatters({"layer": s}).layers
    assert layer.discrimination == expected
    assert layer.closest_classes == metrics.closest_classes(s)[:2]
    centered = metrics.closest_pairs(s, 1, centered=True)[0].cosine
    assert 1.0 - centered == deeprep.discrimination(s, centered=True)


def test_closest_pairs_without_a_direction():
    s = scatter_of_means([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    with pytest.warns(UserWarning, match=r"closest_pairs is empty: the means of 1 class \(1\)"):
        assert metrics.closest_pairs(s, 2) == ()
    assert len(metrics.closest_pairs(s, 3, centered=True)) == 3


def test_closest_pairs_of_features_that_are_not_finite():
    s = scatter_of_means([[1.0], [math.nan], [2.0]])
    with pytest.warns(UserWarning, match=r"closest_pairs is empty.* 1 class \(1\) hold NaN or Inf"):
        assert metrics.closest_pairs(s, 2) == ()


def test_closest_pairs_of_one_class():
    s = deeprep.class_scatter(torch.ones(3, 2), torch.tensor([4, 4, 4]), 10)
    message = "closest_pairs needs at least two classes with samples, found 1 of 10"
    with pytest.raises(UndefinedStatisticError, match=message):
        metrics.closest_pairs(s, 1)


def test_a_count_that_is_none():
    s = scatter_of_means(torch.eye(3))
    with pytest.raises(ValueError, match="count is 0, expected a whole number >= 1"):
        metrics.closest_pairs(s, 0)
    with pytest.raises(TypeError, match=r"count is 1\.5, expected a whole number"):
        metrics.closest_pairs(s, 1.5)


def test_no_matrix_of_all_pairs_is_made(monkeypatch):
    monkeypatch.setattr(class_means, "TILE_ENTRIES", 500)
    tiles = []

    def watched(rows):
        for start, tile in gram_tiles(rows):
            tiles.append(tile.numel())
            yield start, tile

    gram_tiles = class_means.gram_tiles
    monkeypatch.setattr(class_means, "gram_tiles", watched)
    metrics.closest_pairs(random_state(100, 4), 20)
    assert max(tiles) <= 500
    assert sum(tiles) < 0.6 * 100**2


def test_nearest_of_a_lone_row():
    best, partner = cosines.nearest_to_each(torch.ones(1, 1, dtype=torch.float64))
    assert math.isnan(float(best))
    assert int(partner) == -1
