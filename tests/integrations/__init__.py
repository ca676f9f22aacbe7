"""Pure parts: values in, values out."""
