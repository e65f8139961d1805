"""Frontends: from a model to a `Program`."""
