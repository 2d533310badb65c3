"""Build the model that a run starts from, and export the one that it ends with."""
