"""Simple models fitted on the windows that the model was trained on, and what the model has over them.

`fit.fit_baselines` fits them all; `worth.compare` compares, with intervals. Imports training; `evaluation` imports it.
"""
