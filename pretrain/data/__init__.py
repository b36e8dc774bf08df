"""Text to batches: objectives, packing, blending, and the loader that makes them ahead."""
