"""The outer loop: what is due when, how deltas are merged, and what crosses a boundary."""
