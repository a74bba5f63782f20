"""Fine-tuning a checkpoint on one's own data: sources, labels, packing, adapters, loop, exact resume. `foveal train` runs it.

Beside `train/`, which is the recipe of the embedded model: that one makes its data and learns from more than answers.
"""
