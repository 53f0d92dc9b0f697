"""LayerProbe and analyze: class-scatter statistics of every layer while a model runs once."""

from deeprep.probe.analyze import analyze
from deeprep.probe.layer_probe import LayerProbe
from deeprep.probe.scores import Scores
from deeprep.probe.token_labels import TokenLabels, token_counts

__all__ = ["LayerProbe", "Scores", "TokenLabels", "analyze", "token_counts"]
