"""What submissions import as `absl.logging` where absl is not installed: its functions over Python's own logging."""

from __future__ import annotations

import logging as _logging

_logger = _logging.getLogger("absl")

debug = _logger.debug
info = _logger.info
warning = warn = _logger.warning
error = _logger.error
exception = _logger.exception
fatal = _logger.critical
log = _logger.log
