"""Load on a running service, and what it answers: sends requests, measures, and draws the result."""
