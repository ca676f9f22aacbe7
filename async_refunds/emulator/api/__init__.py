"""What each endpoint answers, with no socket in sight."""
