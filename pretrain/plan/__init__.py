"""`plan`: everything that can be known of a run before it starts, on a laptop."""
