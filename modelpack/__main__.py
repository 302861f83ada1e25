"""``python -m modelpack``."""

from modelpack.cli.main import main

if __name__ == "__main__":
    main()
