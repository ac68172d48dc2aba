"""Model files, without loading them."""
