"""Sockets: accepts connections, carries requests out, and damages some answers."""
