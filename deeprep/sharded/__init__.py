"""States that are too large to be whole on any one process: each holds some of the classes."""

from deeprep.sharded.class_scatter import ShardedClassScatter, reduce_scatter
from deeprep.sharded.plan import Plan, plan

__all__ = ["Plan", "ShardedClassScatter", "plan", "reduce_scatter"]
