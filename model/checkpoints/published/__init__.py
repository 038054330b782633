"""Data that libraries publish beside their weights: timm's `pretrained_cfg`s, and the names of ImageNet's classes."""
