"""Training scripts to start from; `docs/scripts.md` shows them."""
