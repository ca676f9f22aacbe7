"""Stripe's own clients take the emulator for Stripe."""
