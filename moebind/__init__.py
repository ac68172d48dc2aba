"""llama.cpp for Python."""
