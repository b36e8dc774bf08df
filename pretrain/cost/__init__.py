"""What a step costs: operations and ideal step times. Pure arithmetic."""
