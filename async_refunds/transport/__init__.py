"""The only folder that speaks aiohttp: a request goes in, a reply comes out."""
