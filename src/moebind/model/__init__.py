"""A loaded model."""
