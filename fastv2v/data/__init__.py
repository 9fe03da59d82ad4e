"""The data room: folders, clips, conditions, geometry, sampling, loading, and the procedural street world."""
