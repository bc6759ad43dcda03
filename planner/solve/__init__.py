"""Ways to solve the placement problem, one file per way, behind one interface."""
