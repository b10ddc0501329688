"""From weights to logits: the model, checkpoints, and the backends that run it."""
