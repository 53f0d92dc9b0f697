"""Arrays of other libraries come in by DLPack: read where they lie, and refused where they fit not.

JAX and CuPy are not needed for this: what they hand over are objects of these two methods.
"""

import numpy as np
import pytest
import torch

import deeprep
from deeprep.base.validate import as_tensor


class ForeignArray:
    """As JAX's arrays: read-only, and known by DLPack's methods alone."""

    def __init__(self, array):
        self.array = array
        self.array.flags.writeable = False

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class ArrayOnGpu(ForeignArray):
    """An array that says it is on the second CUDA device."""

    asked = False

    def __dlpack__(self, **options):
        self.asked = True
        raise BufferError("there is no such device")

    def __dlpack_device__(self):
        return 2, 1


def test_a_foreign_read_only_array_is_read_where_it_lies():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((40, 3)).astype(np.float32), np.arange(40) % 4
    expected = deeprep.class_scatter(features.copy(), labels.copy())
    foreign = ForeignArray(features)
    assert as_tensor("features", foreign).data_ptr() == features.ctypes.data
    s = deeprep.class_scatter(foreign, ForeignArray(labels))
    assert torch.equal(s.means, expected.means)
    assert torch.equal(s.sumsq, expected.sumsq)


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="here there is such a device")
def test_an_array_on_a_device_that_is_not_there_is_never_copied_from_it():
    features = ArrayOnGpu(np.ones((4, 2), np.float32))
    # What torch raises depends on how it was built and on the driver.
    with pytest.raises(Exception, match=r"(?i)cuda|nvidia|device"):
        deeprep.class_scatter(features, torch.zeros(4, dtype=torch.int64))
    assert not features.asked


def test_features_and_labels_on_two_devices_are_refused():
    features = ForeignArray(np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match="labels is on meta, expected cpu, where features is"):
        deeprep.class_scatter(features, torch.zeros(4, dtype=torch.int64, device="meta"), 2)
