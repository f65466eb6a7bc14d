"""`ptystream` on the command line."""

from ptystream.cli.app import main

if __name__ == "__main__":
    main()
