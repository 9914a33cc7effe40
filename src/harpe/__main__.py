"""`python -m harpe` is `harpe`."""

import sys

from harpe.cli.main import main

sys.exit(main())
