"""Open Inference Protocol v2 (KServe, Triton, MLServer) with Triton's extensions."""
