"""The emulator, over HTTP."""
