"""The machinery under a job. Knows no plan."""
