"""What a run does on its own between two stages, and the limits of that."""
