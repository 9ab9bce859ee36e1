"""Super-resolution against resizing: quality by steps, flicker, and differences at tile borders."""
