"""The results service: what is registered for delivery, and what became of it."""
