"""Measures this machine in running training steps: layers, memory, links, rates; the result is a profile."""
