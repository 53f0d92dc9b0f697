"""Metrics as losses: differentiable functions of a batch of features and its labels.

Each equals, to float64 accuracy, the metric of the same name in :mod:`deeprep.metrics` of the state
that holds this batch and nothing else, and is a () float64 tensor on the features' device. All of
them stand on :func:`deeprep.class_moments`: the forward reads the features once, the backward once
more, and everything else has the size of the class means. Nothing waits for the device, and
torch.compile takes all of it in one graph.

Classes without samples in the batch take no part. Where fewer than two classes have some, and
wherever the metric is nan, so are the loss and its gradient: an error, as the metrics raise, or a
warning would have to wait for the device.

A batch is not the data. With n samples a class the variance within comes out 1 - 1/n times too
small, and the noise of the means, 1/n of that variance, counts as distance between them: where the
data's C is far above n, the batch's is about n. Noise also turns the means away from each other,
and the largest of many noisy cosines is too large: D is off either way. Take as many samples a
class as fit, or ``corrected=True`` of :func:`compression`; docs/losses.md says more.
"""

from deeprep.losses.collapse import cdnv, compression
from deeprep.losses.cosines import discrimination
from deeprep.losses.geometry import equinorm, etf_error

__all__ = ["cdnv", "compression", "discrimination", "equinorm", "etf_error"]
