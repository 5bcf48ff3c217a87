"""Speed, shown as ratios to a peer or a floor measured in the same run. Never asserted by a test's timer."""
