"""Models of other architectures, built and run by the library that has them: transformers or timm."""
