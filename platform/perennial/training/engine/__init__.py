"""Build the DeepSpeed engine and run its steps."""
