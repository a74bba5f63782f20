"""Training on the project's own model: data, loss, optimiser, loop, checkpoints. `python -m foveal.train` runs the recipe."""
