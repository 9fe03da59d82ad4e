"""Full-time generators: sequential, full size, every frame. May import the core."""
