"""Questions about speed, each answered by ratios measured side by side in one run."""
