"""The gradient norm of the last layer, per sample, from logits and features."""
