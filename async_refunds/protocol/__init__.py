"""What is sent to Stripe, what may come back, and what it proves.

Pure: no I/O, no clock, no randomness. The same values always give the same answer.
"""
