"""From received instances to jobs: groups, when they are complete, and what they become."""
