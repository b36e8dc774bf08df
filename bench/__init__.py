"""Measurements. Each writes its numbers, with date and hardware, to bench/results/."""

import warnings

warnings.filterwarnings("ignore", module=r"megatron\.")  # notices about extensions that play no part here
