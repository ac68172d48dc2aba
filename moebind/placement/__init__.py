"""Where a model's bytes go: devices of other processes, plans and fits."""
