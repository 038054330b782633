"""Request bodies to encoded images: multipart, JSON or raw bytes, bounded while they arrive."""
