"""These tests take minutes and need Chromium: only `make test-browser` collects them, by the variable ADCORE_BROWSER."""

import os

collect_ignore_glob = [] if os.environ.get("ADCORE_BROWSER") else ["test_*.py"]
