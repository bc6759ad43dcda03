"""Secure aggregation inside one boundary: state machines over bytes, no input or output of their own."""
