"""Explanations: how much each patch of an image counts for a class, computed in a process of their own."""
