"""The optimizer behind an interface: what is summed over replicas, sharded and updated, and how that comes back from a
checkpoint."""
