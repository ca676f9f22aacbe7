"""What the emulated Stripe remembers: no requests, no sockets."""
