"""What is learned: networks and their inputs. No loops and no files."""
