"""The shapes of the files people write. Only this package imports pydantic and yaml."""
