"""Metrics of a run for MLflow and Prometheus, from observers of the controller."""
