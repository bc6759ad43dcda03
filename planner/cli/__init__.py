"""The command `echelon`: one module for each command, loaded only when it runs."""
