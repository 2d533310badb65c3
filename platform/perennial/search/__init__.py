"""Searching what the next stage should use: points, Pareto front, knee, advice, and a fitted law.

`search` runs trials under Ray Tune; everything else is pure.
"""
