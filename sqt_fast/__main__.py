"""``python -m sqt_fast`` is ``sqt-fast``."""

from sqt_fast.cli import main

if __name__ == "__main__":
    main(prog_name="sqt-fast")
