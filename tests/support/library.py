"""Which transformers the tests run on: what the library itself cannot do before 5.23 is left out there."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version

VERSION = Version(transformers.__version__)
OLD = Version("5.23") > VERSION
since_5_23 = pytest.mark.skipif(OLD, reason="transformers can do this since 5.23")
