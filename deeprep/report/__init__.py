"""LayerReport: what was measured, a row a layer; as a table, data frame, CSV, JSON and figure."""

from deeprep.report.layer_metrics import LayerMetrics, LayerScores
from deeprep.report.layer_report import LayerReport
from deeprep.report.neural_collapse import NeuralCollapse
from deeprep.report.options import ReportOptions

__all__ = ["LayerMetrics", "LayerReport", "LayerScores", "NeuralCollapse", "ReportOptions"]
