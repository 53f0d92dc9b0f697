"""deeprep: layerwise feature compression and discrimination of deep networks.

    s = deeprep.class_scatter(features, labels)     # one pass over the features
    deeprep.compression(s)                          # C = Tr Sigma_W / Tr Sigma_B
    deeprep.discrimination(s)                       # D = 1 - largest cosine between class means
    deeprep.analyze(model, loader, num_classes=10)  # the same for every layer of a model

After Wang, Li, Yaras, Zhu, Balzano, Hu, Qu, "Understanding Deep Representation Learning via
Layerwise Feature Compression and Discrimination", arXiv 2311.02960.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from deeprep import losses, metrics, ops, reference, sharded, theory
from deeprep.base.ranks import RankLostError
from deeprep.base.validate import UndefinedStatisticError
from deeprep.files import class_scatter_of_files
from deeprep.metrics import compression, discrimination
from deeprep.ops import build_info, class_moments, show_config
from deeprep.probe import LayerProbe, Monitor, TokenLabels, analyze
from deeprep.report import LayerMetrics, LayerReport, ReportOptions
from deeprep.state import ClassScatter, all_reduce_layers, class_scatter

if TYPE_CHECKING:
    from types import ModuleType

__version__ = _version("deeprep")

__all__ = [
    "ClassScatter",
    "LayerMetrics",
    "LayerProbe",
    "LayerReport",
    "Monitor",
    "RankLostError",
    "ReportOptions",
    "TokenLabels",
    "UndefinedStatisticError",
    "all_reduce_layers",
    "analyze",
    "build_info",
    "class_moments",
    "class_scatter",
    "class_scatter_of_files",
    "compression",
    "discrimination",
    "losses",
    "metrics",
    "ops",
    "plots",
    "reference",
    "sharded",
    "show_config",
    "theory",
]


def __getattr__(name: str) -> "ModuleType":
    # Matplotlib takes half a second to import: only those who draw wait for it.
    if name == "plots":
        return _import_module("deeprep.plots")
    raise AttributeError(f"module 'deeprep' has no attribute {name!r}")
