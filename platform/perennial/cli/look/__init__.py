"""Verbs that only read a run."""
