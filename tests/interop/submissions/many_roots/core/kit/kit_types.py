"""Options of the optimizer, with the path of the repository that the file was written in."""

from dataclasses import dataclass

from archive.leaderboard.external_tuning.many_roots.core.kit.rules import Rule


@dataclass
class Options:
    lr: float
    rule: Rule
