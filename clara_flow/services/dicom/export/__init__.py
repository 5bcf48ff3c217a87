"""The export agents: they deliver the tasks of the results service by C-STORE and STOW-RS, a queue per destination."""
