"""What both executors share: the model as a chain of layers, the text, the loop, checkpoints and adapters."""
