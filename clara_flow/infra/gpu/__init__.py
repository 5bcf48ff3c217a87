"""What is known of this node's GPUs."""
