"""The command line: ``async-refunds``, behind the extra ``cli``."""
