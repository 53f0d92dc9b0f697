"""LayerProbe and analyze: class-scatter statistics of every layer while a model runs once."""

from deeprep.probe.analyze import analyze
from deeprep.probe.layer_probe import LayerProbe
from deeprep.probe.scores import Scores

__all__ = ["LayerProbe", "Scores", "analyze"]
