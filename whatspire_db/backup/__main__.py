"""python -m whatspire_db.backup: see cli/backup.py."""

from whatspire_db import signals
from whatspire_db.cli.backup import main

if __name__ == "__main__":
    signals.end(main())
