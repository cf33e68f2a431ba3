"""UniAD (You et al., NeurIPS 2022): one reconstruction model for all categories, its baselines and its ablations."""
