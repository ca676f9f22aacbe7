"""Cancel Stripe refunds from asyncio, and know what happened."""
