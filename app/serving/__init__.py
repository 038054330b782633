"""From a request to scores: admission, batching, running, and the life cycle of the service."""
