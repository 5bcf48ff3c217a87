"""The one source of truth: tables, state machines, payload storage."""
