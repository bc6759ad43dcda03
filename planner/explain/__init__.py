"""Why no plan exists, and why a plan is as it is, in the fleet's own names."""
