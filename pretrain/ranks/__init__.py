"""This process among the others: how they meet, their groups and devices, how they agree, and how they are asked to stop."""
