"""Ranks, groups, and the DeepSpeed engine around the model's chunks."""
