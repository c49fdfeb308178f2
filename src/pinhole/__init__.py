"""Pinhole lets an open language model see your catalogue with no vision encoder."""

__version__ = "0.1.0"
