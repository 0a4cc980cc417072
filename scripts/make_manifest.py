"""Write a manifest from files in folders: `python scripts/make_manifest.py FOLDER [--yes]`.

The same as `tversky-seg manifest`.
"""

from tversky_seg.cli import command

main = command("manifest")

if __name__ == "__main__":
    main()
