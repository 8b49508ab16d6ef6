"""From a recipe to a run directory: rows and methods, the order of the run, its plan, and what is written."""
