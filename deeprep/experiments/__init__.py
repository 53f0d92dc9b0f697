"""The paper's figures, one command each: `python -m deeprep.experiments`.

Source: Wang, Li, Yaras, Zhu, Balzano, Hu, Qu, "Understanding Deep Representation Learning via
Layerwise Feature Compression and Discrimination", JMLR 26(220), 2025 (arXiv 2311.02960).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeprep.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "load_experiment"]

EXPERIMENTS = {
    "fig4a": "deeprep.experiments.fig4a",
    "fig4b": "deeprep.experiments.fig4b",
    "rates": "deeprep.experiments.rates",
    "init-scale": "deeprep.experiments.init_scale",
    "fig6": "deeprep.experiments.fig6",
    "fig1": "deeprep.experiments.fig1",
    "fig5": "deeprep.experiments.fig5",
    "fig3": "deeprep.experiments.fig3",
    "fig7": "deeprep.experiments.fig7",
    "fig8": "deeprep.experiments.fig8",
    "text": "deeprep.experiments.text",
    "errata": "deeprep.experiments.errata",
}
"""Name of every experiment -> its module, in the order of `all`."""


def load_experiment(name: str) -> "Experiment":
    """Return an experiment by name.

    Raises
    ------
    ValueError
        An unknown name; says which there are.

    >>> load_experiment("fig4a").name
    'fig4a'
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name is {name}, expected one of {', '.join(EXPERIMENTS)}")
    experiment: Experiment = import_module(EXPERIMENTS[name]).EXPERIMENT
    return experiment
