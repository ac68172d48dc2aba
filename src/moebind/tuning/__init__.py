"""Finding the parameters that are fastest on this machine: a search that measures."""
