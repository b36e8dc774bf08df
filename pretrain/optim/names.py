"""What is kept of every parameter, by name: in the optimizer, in checkpoints, everywhere."""

MASTER = "weight"
"""The fp32 master weight."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's moments, by the names that PyTorch gives them."""
TENSORS = (MASTER, *MOMENTS)
