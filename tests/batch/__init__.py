"""What a batch tells of every id."""
