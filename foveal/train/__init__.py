"""Training: data, loss, optimiser, loop, and the tokenizer of small models."""
