"""Statistics of features on disk: `deeprep.class_scatter_of_files`."""

from deeprep.files.files import BATCH_BYTES, class_scatter_of_files

__all__ = ["BATCH_BYTES", "class_scatter_of_files"]
