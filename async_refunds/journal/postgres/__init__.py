"""A journal in PostgreSQL, which several machines share."""
