"""The boundary plane."""
