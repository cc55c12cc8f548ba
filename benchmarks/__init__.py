"""Speed as ratios: every peer runs in the same process, on the same model, in turn."""
