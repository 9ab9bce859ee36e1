"""Reading and writing of videos, animations and pictures."""
