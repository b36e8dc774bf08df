"""How many positions' logits exist at a time."""

PIECE_ON_GPU = 2**25
"""Logits in a piece, about: a GPU needs a thousand positions to be busy."""
PIECE_ON_CPU = 2**22
"""A CPU's piece stays near its caches."""


def positions_in_piece(columns: int, on_gpu: bool) -> int:
    """Return how many positions have logits together, of so many columns on this rank."""
    return max(1, (PIECE_ON_GPU if on_gpu else PIECE_ON_CPU) // max(1, columns))
