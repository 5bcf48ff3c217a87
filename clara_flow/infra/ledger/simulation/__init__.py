"""A day of arrivals through the pool's own ledger on a virtual clock: how long who waits, before hardware is bought."""
