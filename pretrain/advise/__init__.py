"""What to try: hours from `plan`'s estimate, losses from what was measured, and no word beyond it."""
