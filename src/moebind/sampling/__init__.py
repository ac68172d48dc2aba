"""Choosing a token."""
