"""Where a model's bytes would go, before they do: plans, fits, experts, routing."""
