"""The user's own training script under a plan."""
