"""Access control: API keys, rate limits, and the client address that they count by."""
