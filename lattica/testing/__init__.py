"""Time and networks that a test controls: a virtual clock for asyncio code, seeded worlds for protocol cores."""
