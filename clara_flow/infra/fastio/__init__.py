"""FastIO volumes: shared memory of one job, with a hard size."""
