"""Figures of reports, after the paper's.

Every function returns the matplotlib Figure that it draws and, given a path, writes it there in one
step, in the format of the path's suffix. None touches pyplot's state.
"""

from deeprep.plots.comparison import compare
from deeprep.plots.curves import plot_accuracies, plot_compression, plot_discrimination
from deeprep.plots.evolution import plot_evolution
from deeprep.plots.overview import plot_report

__all__ = [
    "compare",
    "plot_accuracies",
    "plot_compression",
    "plot_discrimination",
    "plot_evolution",
    "plot_report",
]
