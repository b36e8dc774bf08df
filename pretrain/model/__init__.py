"""Megatron-Core model chunks whose layers can be skipped."""
