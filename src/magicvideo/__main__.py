"""`python -m magicvideo` is `magicvideo`."""

from magicvideo.cli import main

if __name__ == "__main__":
    main()
