"""Detect loss spikes and record the batches that are skipped."""
