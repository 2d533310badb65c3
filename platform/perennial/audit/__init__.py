"""Prove a run from what is in its store: ledger, counts, files, checkpoints."""
