"""A run as a cluster's job: what happened to it, and whether it is to be started again. Knows neither torch nor SLURM's
commands."""
