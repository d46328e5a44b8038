"""What ``frameattn train`` runs: the configuration, what a step draws, the loop and its files."""
