"""Searching what the next stage should use: trials are branches off one trunk checkpoint."""
