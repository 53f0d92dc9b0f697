"""ClassScatter: the class-scatter statistics of a layer, accumulated in one pass.

`scatter` has the class; what it holds, and what is read off it, is in `moments` and `statistics`,
how it grows in `accumulator`, `merge` and `pooled`, and how it moves in `streaming`, `collectives`,
`transfer` and `state_file`.
"""

from deeprep.state.layers import all_reduce_layers
from deeprep.state.scatter import ClassScatter, Weighting, class_scatter

__all__ = ["ClassScatter", "Weighting", "all_reduce_layers", "class_scatter"]
