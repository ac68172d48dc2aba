"""Each parameter, declared once, and its native form."""
