"""Pretraining with progressive subnetworks (RaPTr) on Megatron-Core and DeepSpeed."""

__version__ = "0.1.0"
