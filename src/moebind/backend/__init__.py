"""Devices that compute, and how much memory they have."""
