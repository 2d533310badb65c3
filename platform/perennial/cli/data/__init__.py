"""Verbs that bring data into a run and out of it."""
