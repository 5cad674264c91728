"""Models as people leave them in MLflow: `python -m tests.support.training.zoo FOLDER [NAME …]`.

The program knows nothing of Gyre. Each model is saved by MLflow's own flavour; its scores are those of
the library that made it, on rows of its own types.
"""
