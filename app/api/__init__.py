"""The wire protocols: thin files that translate between HTTP and the classifier."""
