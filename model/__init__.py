"""The Vision Transformer in plain PyTorch: architecture, checkpoints, preprocessing, training. Knows nothing of `app/`."""
