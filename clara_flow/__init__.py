"""clara-flow: medical-imaging AI pipelines on Prefect, with operators in containers."""

__version__ = "0.1.0"
