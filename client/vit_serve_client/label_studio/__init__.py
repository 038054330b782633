"""A machine-learning backend of Label Studio, which asks vit-serve for the class of each task's image."""
