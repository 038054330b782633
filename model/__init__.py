"""The Vision Transformer in plain PyTorch: architecture, checkpoints, preprocessing, training. Imports nothing of `app/`."""
