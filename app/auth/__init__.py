"""Who may call: API keys, rate limits, and the client address they count by."""
