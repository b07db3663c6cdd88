"""One experiment per file; each defines ``RECIPE``."""
