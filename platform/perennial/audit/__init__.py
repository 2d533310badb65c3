"""Verification of a run from its store alone: ledger, counts, files, checkpoints."""
