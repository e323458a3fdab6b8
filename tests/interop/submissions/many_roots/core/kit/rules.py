"""What the update is, chosen by an enum: comparisons fail if this file is loaded twice."""

import enum


class Rule(enum.Enum):
    PLAIN = enum.auto()
    SIGN = enum.auto()
