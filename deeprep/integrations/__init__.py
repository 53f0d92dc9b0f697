"""deeprep inside other people's training loops; each module needs the package it is named after.

``deeprep.integrations.torchmetrics``  `ClassScatterMetric`, a `torchmetrics.Metric`
``deeprep.integrations.lightning``     `LayerMetricsCallback`, a Lightning callback
``deeprep.integrations.transformers``  `DeeprepCallback`, a callback of the Hugging Face Trainer

Nothing is imported here, so a package that is not installed is missed only by who asks for it.
"""
