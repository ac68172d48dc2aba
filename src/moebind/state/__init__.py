"""Saved states of contexts and sequences."""
