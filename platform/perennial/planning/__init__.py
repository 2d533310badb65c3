"""Predict a run before any compute: steps, tokens, memory, time, goodput."""
