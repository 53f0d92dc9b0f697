"""The architectures a run can train, by name: one registry.

`linear`, `mlp` and `hybrid` are the paper's stacks of fully connected layers (`stack.py`); every
other name is looked up among torchvision's image classifiers (`vision.py`). `build_model` makes
any of them. `load.py` builds what was trained elsewhere, for `deeprep analyze`.
"""

from deeprep.models.registry import STACKS, build_model, check_architecture
from deeprep.models.settings import Init, ModelSettings
from deeprep.models.stack import LayerStack
from deeprep.models.vision import FittedImages, VisionModel

__all__ = [
    "STACKS",
    "FittedImages",
    "Init",
    "LayerStack",
    "ModelSettings",
    "VisionModel",
    "build_model",
    "check_architecture",
]
