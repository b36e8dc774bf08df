"""Measurements. Each writes its numbers, with date and hardware, to bench/results/."""
