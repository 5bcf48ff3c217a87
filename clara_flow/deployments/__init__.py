"""How pipelines come to run."""
