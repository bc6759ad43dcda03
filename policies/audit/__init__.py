"""The tamper-evident log of what crossed a boundary, and its offline verifier."""
