"""``python -m moebind``: the command line, begun as ``moebind`` begins it.

Python imports the package before this; what only commands need stays unimported where the launcher does without.
"""

from moebind_launcher import main

if __name__ == "__main__":
    main()
