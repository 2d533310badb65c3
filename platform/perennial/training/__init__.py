"""The DeepSpeed engine under Ray Train: jobs in, committed checkpoints out."""
