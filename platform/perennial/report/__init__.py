"""Show a run: HTML pages, figures, tables, model cards. Observes the controller."""
