"""The bindings of the core: which exception a status becomes, told before an address is read."""

from __future__ import annotations

import pytest

from deeprep import _core


@pytest.mark.parametrize("num_rows", [0, 5])
def test_more_classes_than_the_core_can_number_are_refused(num_rows):
    message = "num_classes is 2147483649, expected at most 2147483648"
    with pytest.raises(ValueError, match=message):
        _core.class_moments(
            *(0, _core.FeatureType.float32, num_rows, 1, 1, 1),
            *(0, _core.LabelType.int64, -100),
            *(0, 0, 0, 2**31 + 1, 1),
        )
