"""What computes, and how much memory it has."""
