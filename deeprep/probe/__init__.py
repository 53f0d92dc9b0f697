"""LayerProbe and analyze: class-scatter statistics of every layer while a model runs once."""

from deeprep.probe.layer_probe import LayerProbe, analyze

__all__ = ["LayerProbe", "analyze"]
