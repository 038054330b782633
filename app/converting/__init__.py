"""Conversion of a checkpoint for OpenVINO in a process of its own, so that the service's needs no torch."""
