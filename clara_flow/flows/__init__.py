"""From YAML to a running Prefect flow."""
