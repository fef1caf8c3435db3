"""``python -m pspexp``."""

from pspexp.main import main

if __name__ == "__main__":
    main()
