"""What a caller of the client sees, over real sockets."""
