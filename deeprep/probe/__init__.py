"""LayerProbe, analyze, Monitor: class-scatter statistics of every layer while a model runs."""

from deeprep.probe.analyze import analyze
from deeprep.probe.layer_probe import LayerProbe
from deeprep.probe.monitor import Monitor
from deeprep.probe.scores import Scores
from deeprep.probe.token_labels import TokenLabels, token_counts

__all__ = ["LayerProbe", "Monitor", "Scores", "TokenLabels", "analyze", "token_counts"]
