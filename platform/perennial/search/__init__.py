"""Search the settings of the next stage: trials, Pareto front, knee, advice, and a fitted law.

`service` is the entry, `tune_runner` the one module that uses Ray Tune; front, law, space, advisor
and summarize are pure.
"""
