"""Flow 1: a prompt or a picture goes in, a video file that knows how it was made comes out."""
