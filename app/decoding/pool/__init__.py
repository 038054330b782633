"""Pools of workers that decode images: sandboxed processes, or threads."""
