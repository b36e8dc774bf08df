"""The idea: which layers run in which training step. Pure Python: no torch, no Megatron, no DeepSpeed."""

from pretrain.subnetwork.methods import Method, make_method
from pretrain.subnetwork.path import LayerPath, Scheme, draw, fingerprint, parts_of_model, path_of_sample
from pretrain.subnetwork.schedule import Stage, make_stages

__all__ = [
    "Method",
    "LayerPath",
    "Scheme",
    "Stage",
    "draw",
    "fingerprint",
    "make_method",
    "make_stages",
    "parts_of_model",
    "path_of_sample",
]
