"""Authenticated links between the services of the boundary plane."""
