"""What was computed, kept."""
