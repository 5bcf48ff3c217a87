"""The clara-flow command: one module per noun."""
