"""Growth of a byte-level BPE: its merges are continued over the words of a new corpus."""
