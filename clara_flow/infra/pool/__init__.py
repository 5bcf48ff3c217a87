"""The GPU-aware work pool: takes jobs from the queue, leases resources, keeps warm runners."""
