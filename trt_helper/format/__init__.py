"""Text and JSON of single values."""
