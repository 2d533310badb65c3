"""What is kept of a trunk's stages: running sums, and where their plans and measurements are."""
