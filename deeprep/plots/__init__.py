"""Figures of reports, in the manner of the paper's.

Every function returns the matplotlib Figure it draws and, given a path, writes it there in one
step, in the format that the path's suffix names. Nothing touches pyplot's state.
"""

from deeprep.plots._compare import compare
from deeprep.plots._curves import plot_compression, plot_discrimination
from deeprep.plots._evolution import plot_evolution
from deeprep.plots._overview import plot_report

__all__ = ["compare", "plot_compression", "plot_discrimination", "plot_evolution", "plot_report"]
