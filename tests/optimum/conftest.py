"""Collected where optimum-onnx is installed (make test-optimum), apart from transformers 5."""

from importlib.metadata import distributions

installed = any(found.name == "optimum-onnx" for found in distributions())
collect_ignore_glob = [] if installed else ["test_*"]
