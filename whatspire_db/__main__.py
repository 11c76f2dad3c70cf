"""python -m whatspire_db: see cli/verbs.py."""

from whatspire_db import signals
from whatspire_db.cli.verbs import main

if __name__ == "__main__":
    signals.end(main())
