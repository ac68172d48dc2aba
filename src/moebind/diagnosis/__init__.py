"""Why it does not work as expected, and what to do."""
