"""Weights on disk: opening, reading and renaming tensors."""
