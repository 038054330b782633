"""Server side of a socket: HTTP/1.1 framing, connection limits, flow control. Knows nothing of images or models."""
