"""Reading checkpoints of Hugging Face transformers, timm and torchvision."""
