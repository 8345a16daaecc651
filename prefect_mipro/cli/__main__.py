"""`python -m prefect_mipro.cli`: the command where its script is not on the path."""

from __future__ import annotations

import sys

from prefect_mipro.cli.entry import main

sys.exit(main())
