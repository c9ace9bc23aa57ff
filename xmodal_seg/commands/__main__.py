# SPDX-License-Identifier: Apache-2.0
"""`python -m xmodal_seg.commands`, the same as `xmodal-seg`."""

import sys

from xmodal_seg.commands.main import main

sys.exit(main())
