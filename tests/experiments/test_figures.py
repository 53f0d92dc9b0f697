"""The verdicts of the figures, on the parts that train in a moment."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from figures import drawn

from deeprep.experiments import EXPERIMENTS, fig4a, fig4b, fig6, init_scale, load_experiment, rates
from deeprep.experiments.deep_linear import train_directly
from deeprep.experiments.experiment import Options
from deeprep.experiments.layer_panels import Curve, layer_panels

CPU = torch.device("cpu")


def passed(checks):
    return {check.quantity: check.passed for check in checks}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_it_is(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    for full in (False, True):
        settings = experiment.settings(Options(full=full))
        assert {setting.source for setting in settings} <= {"authors", "ours"}
        assert settings[-1].value == experiment.seeds[full]


def test_fig4a_meets_the_notebook_and_the_closed_form():
    network = train_directly(replace(fig4a.RUN, alpha=100.0), range(fig4a.SEEDS), CPU)
    numbers = {
        "networks": {"100": network, "1": network},  # the latter trains for seconds
        "data": {"mean": 0.03, "largest": 0.15},
    }
    verdicts = passed(fig4a.check(numbers))
    hundred = {name: verdict for name, verdict in verdicts.items() if "alpha 100" in name}
    assert len(hundred) == 6 + 5 + 4 + 1
    assert all(hundred.values())
    assert not verdicts["0.9 C_3, alpha 1"]  # it is not what alpha 1 gives
    assert not verdicts["C_3 / C_2, alpha 1 (closed form)"]
    known = [check for check in fig4a.check(numbers) if check.known]
    assert [check.quantity for check in known] == [f"D_{layer}, alpha 1" for layer in range(1, 5)]
    assert not any(check.passed for check in known)
    left, right = fig4a.plot(numbers).axes
    assert (left.get_yscale(), right.get_yscale()) == ("log", "linear")
    band = left.get_legend().get_texts()[-1].get_text()
    assert band == "band: least to largest of 20 draws of the released data"
    marked = {line.get_label(): line.get_xdata() for line in right.lines}
    assert list(marked["verdict failed: other data"]) == [1, 2, 3, 4]
    assert "the least $D_0$ is 0.85" in right.get_legend().get_title().get_text()
    numbers["networks"]["1"] = {**network, "discrimination": [[0.82, *fig4a.FIGURE_DISCRIMINATION]]}
    assert fig4a.plot(numbers).axes[1].get_legend() is None


def test_fig4b_judges_the_spread_of_the_draws():
    part = fig4b._train(0, CPU)
    assert part["loss"] < fig4b.RUN.descent.stop_loss
    assert len(part["compression"]) == len(part["discrimination"]) == 10
    numbers = {name: [value] for name, value in part.items()}
    verdicts = passed(fig4b.check(numbers))
    assert verdicts["layers l = 2 .. 9 at which C_l falls"]
    assert verdicts["runs with a loss below 1e-11"]
    numbers["loss"] = [1e-3]
    assert not passed(fig4b.check(numbers))["runs with a loss below 1e-11"]
    left, right = fig4b.plot(numbers).axes
    assert drawn(left)["10 layers, ours"] == pytest.approx(part["compression"])
    assert drawn(right)["10 layers, paper"] == list(fig4b.FIGURE_DISCRIMINATION)


def test_fig6_meets_the_figure_at_its_smallest_depth():
    """Two layers train in a second; the others' numbers are the figure's own."""
    measured = fig6._measure(replace(fig6.RUN, depth=2), (400, 1000), [1, 2, 3], CPU)
    # Two layers have no hidden-to-hidden one, where the width could enter the balance.
    assert measured["400"]["balance"] == pytest.approx(measured["1000"]["balance"], rel=0.03)
    assert all(measured["400"]["converged"])

    def of_the_figure(sweep, value):
        run = {name: [fig6.FIGURE[name][sweep][value]] * 3 for name in fig6.FIGURE}
        return {**run, "variance": [1e-12] * 3, "epochs": [1] * 3, "converged": [True] * 3}

    numbers = {
        sweep: {str(value): of_the_figure(sweep, value) for value in fig6.FIGURE["norm"][sweep]}
        for sweep in ("depth", "width")
    }
    for width in fig6.LARGE_WIDTHS:
        run = numbers["width"][str(width)] = of_the_figure("width", 700)
        run["norm"] = [width**-0.5] * 3
    numbers["depth"]["2"] = measured["400"]
    assert all(passed(fig6.check(numbers)).values())
    wrong = copy.deepcopy(numbers)
    wrong["depth"]["2"]["balance"] = [1.1 * value for value in measured["400"]["balance"]]
    verdicts = passed(fig6.check(wrong))
    assert [name for name, verdict in verdicts.items() if not verdict] == ["imbalance, depth 2"]
    panels = [axes for axes in fig6.plot(numbers).axes if "paper" in drawn(axes)]
    assert len(panels) == 4  # the paper shows no numbers of the variance
    for axes in panels:
        (bars,) = axes.containers
        ours = dict(zip(*bars.lines[0].get_data(), strict=True))
        paper = next(line for line in axes.lines if line.get_label() == "paper")
        for position, value in zip(*paper.get_data(), strict=True):
            assert ours[position] == pytest.approx(value, rel=0.1)


def test_rates_meet_the_closed_form_at_one_shape():
    run = rates._run(samples=10, depth=3, classes=3)
    points = rates._measure(run, (0.3, 0.4), [0, 1], CPU)["points"]
    assert all(passed(rates.check({"points": points})).values())
    points[1]["measured"] *= 1.1
    failed = [check for check in rates.check({"points": points}) if not check.passed]
    assert len(failed) == 4  # one for each of eps, n, L, K
    assert all("worst at eps 0.4, n 10, L 3, K 3" in check.quantity for check in failed)
    left, _ = rates.plot({"points": points}).axes
    assert drawn(left)["L = 3"] == [point["measured"] for point in points]


def test_init_scale_tells_training_from_the_plateau():
    layers = np.arange(6)
    stuck = {"compression": [[13.5] * 6], "discrimination": [[0.97] * 6]}
    numbers = {"0.1": {**stuck, "losses": [1.0], "converged": [False]}}
    for scale in ("0.3", "0.5"):
        ratio = float(scale) ** 2 / 10 ** (1 / 6)
        curve = (13.5 * ratio**layers).tolist()
        trained = {"losses": [1e-12], "converged": [True]}
        numbers[scale] = {"compression": [curve], "discrimination": [[0.97] * 6], **trained}
    assert all(passed(init_scale.check(numbers)).values())
    curves = drawn(init_scale.plot(numbers).axes[0])
    for scale in ("0.3", "0.5"):
        ours, predicted = (curves[rf"$\epsilon$ = {scale}, {of}"] for of in ("ours", "closed form"))
        assert ours[1:] == pytest.approx(predicted)
    assert r"$\epsilon$ = 0.1, closed form" not in curves
    numbers["0.1"] = numbers["0.3"]
    verdicts = passed(init_scale.check(numbers))
    assert not verdicts["least loss after 5000 epochs, eps 0.1"]
    assert not verdicts["relative change of C_l over all layers, eps 0.1"]


def test_a_curve_is_the_mean_of_the_seeds_in_a_band_that_the_legend_explains():
    seeds = [[8.0, 4.0, 1.0], [10.0, 5.0, 2.0], [12.0, 9.0, 3.0]]
    figure = layer_panels("title", [Curve("net", seeds, seeds, paper_compression={1: 6.0})])
    left = figure.axes[0]
    assert drawn(left) == {"net, ours": [10.0, 6.0, 2.0], "net, paper": [6.0]}
    (band,) = left.collections
    corners = band.get_paths()[0].vertices
    assert {tuple(corner) for corner in corners} == {
        *((layer, value) for layer, value in enumerate(np.min(seeds, axis=0))),
        *((layer, value) for layer, value in enumerate(np.max(seeds, axis=0))),
    }
    texts = [text.get_text() for text in left.get_legend().get_texts()]
    assert texts == ["net, ours", "net, paper", "band: least to largest of 3 seeds"]
    (left, _) = layer_panels("title", [Curve("net", seeds[:1], seeds[:1])]).axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["net, ours"]
