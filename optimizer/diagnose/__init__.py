"""Part of rankc."""
