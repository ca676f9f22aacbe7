"""The exit codes of the command, all of them.

When several apply, the highest counts: an unknown outcome (3) before one that is not
canceled (1). An interrupt is told only if no outcome is unknown.
"""

DONE = 0
"""What was asked for is done: all are canceled, read, listed, or as reported; or as
many as ``--max`` says."""
NOT_ALL = 1
"""Some are not, or the output could not be written to its end."""
USAGE_ERROR = 2
"""The command cannot be right, or there is no such journal; nothing was sent."""
UNKNOWN = 3
"""The outcome of some refunds is unknown."""
INTERRUPTED = 130
"""Ctrl-C came before the end. Shells give it this number: 128 and that of SIGINT."""
