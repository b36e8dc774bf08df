"""A hash of whole numbers that stays the same for ever: library random streams may change between versions, a hash may not."""

import hashlib
import struct


def stable_hash(*values: int) -> int:
    """Return a 64-bit hash, the same on every machine and in every version."""
    packed = struct.pack(f"<{len(values)}q", *values)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")
