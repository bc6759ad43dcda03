"""The referee: re-derives everything a plan claims, with code that no solver shares."""
