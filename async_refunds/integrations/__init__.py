"""Other libraries that a service may have, each behind an extra of its own."""
