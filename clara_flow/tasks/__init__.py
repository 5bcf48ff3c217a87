"""What one step of a job does."""
