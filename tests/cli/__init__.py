"""The command, as a process on a real terminal."""
