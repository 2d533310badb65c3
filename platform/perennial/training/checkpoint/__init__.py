"""Write, commit, read and thin out checkpoints."""
