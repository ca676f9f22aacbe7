"""The house, its arrows, and the README."""
