"""``python -m pspexp``."""

from pspexp.cli import main

if __name__ == "__main__":
    main()
