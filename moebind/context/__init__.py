"""A model at work."""
