"""What a person and other tools see of a run: metrics.jsonl, TensorBoard, the console, plots."""
