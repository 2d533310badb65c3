"""Read landed files: one module for each file format."""
