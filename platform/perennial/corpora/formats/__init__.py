"""Read landed files: one module per file format."""
