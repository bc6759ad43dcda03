"""Boundaries, participants and links in virtual time, running any sync policy over any local training."""
