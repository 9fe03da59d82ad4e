"""Low-resolution, part-time generators. May import the core and teachers."""
