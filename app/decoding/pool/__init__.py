"""Workers that decode images: sandboxed processes, or threads."""
