"""The door to native code, and what every object needs."""
