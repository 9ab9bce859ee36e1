"""Super-resolution against resizing: quality by steps, flicker, and the seams of tiles."""
