"""What Prefect is told of jobs: run states, logs, artifacts. A Prefect server that is away stops no job."""
