"""The core as torch operators, on the CPU and on CUDA.

`torch.ops.deeprep.class_moments_` updates a running state; `class_moments` takes a single batch and
is differentiable.

Registered through `torch.library.Library.define`/`impl` (a few microseconds a call, where the
`custom_op` decorator costs over twenty), with a fake kernel, so it can be traced by torch.compile.

On CUDA all work goes to the current stream of the features' device, scratch memory comes from
torch's caching allocator and nothing waits for the device, so CUDA graphs can capture it. Only the
device knows whether a label is out of range: it notes the first that is in a tensor `bad_label`
(3,) int64, made by `new_bad_label`, and from then on leaves the state alone until the tensor is
refilled with -1.
"""

from deeprep.ops.bad_label import has_bad_label, new_bad_label, read_bad_label
from deeprep.ops.build import build_info, show_config
from deeprep.ops.core import on_host, require_core
from deeprep.ops.differentiable import class_moments
from deeprep.ops.moments import class_moments_, merge_batch
from deeprep.ops.rows import shift_rows, squared_distances

__all__ = [
    "build_info",
    "class_moments",
    "class_moments_",
    "has_bad_label",
    "merge_batch",
    "new_bad_label",
    "on_host",
    "read_bad_label",
    "require_core",
    "shift_rows",
    "show_config",
    "squared_distances",
]
