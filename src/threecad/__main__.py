"""`python -m threecad` is the command line."""

from threecad.cli import main

if __name__ == "__main__":
    main()
