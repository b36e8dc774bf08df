"""`plan`: everything that can be known of a run before it starts, on a laptop."""

from pretrain.plan.tables import print_plan

__all__ = ["print_plan"]
