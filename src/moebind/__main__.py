"""``python -m moebind``: the command line."""

from moebind.cli import main

if __name__ == "__main__":
    main()
