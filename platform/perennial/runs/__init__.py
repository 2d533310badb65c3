"""The stage controller: what landed becomes a stage, once, wherever anything is killed."""
