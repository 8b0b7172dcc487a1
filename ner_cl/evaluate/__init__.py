"""Compare predictions with gold: counts, F1, forgetting, mistakes, and the significance of differences."""
