"""A comparison as it runs: its recipe, its contestants, and the folder that it fills."""
