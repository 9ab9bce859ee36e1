"""Super-resolution against plain enlarging: quality by steps, flicker, and the seams of tiles."""
