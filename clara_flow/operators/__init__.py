"""What runs inside a container. Imports nothing of the platform."""
