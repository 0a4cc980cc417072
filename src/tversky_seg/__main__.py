"""`python -m tversky_seg` is `tversky-seg`."""

from tversky_seg.cli import main

if __name__ == "__main__":
    main()
