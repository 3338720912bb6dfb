"""`python -m docmind` is the command line."""

import sys

from docmind.cli import main

sys.exit(main())
