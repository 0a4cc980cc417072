"""Manifests from files: which images belong to which case, by patterns or by their names."""
