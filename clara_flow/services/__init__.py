"""What others talk to, and the supervisor that starts it."""
