"""Serving: admission, batching, inference, and the life cycle of the service."""
