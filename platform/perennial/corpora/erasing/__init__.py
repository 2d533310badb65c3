"""Erasing documents of a tokenised corpus, or all of it: what is left, and its tombstone."""
