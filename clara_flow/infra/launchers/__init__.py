"""Launchers: how one operator attempt is run. Public `run` is written once."""
