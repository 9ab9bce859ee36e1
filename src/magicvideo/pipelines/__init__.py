"""Flow 1: from a prompt or a picture to a video file that records how it was made."""
