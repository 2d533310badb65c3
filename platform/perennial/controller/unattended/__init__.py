"""Beside and between stages, without a user: measure, and answer what came out."""
