"""What is known of this machine: its GPUs (NVML), its cores and memory (cgroups), and how the ledger counts them."""
