"""Decide which events are recorded, how much of each, and what happens if one cannot be recorded.

The life of one decision, in reading order:

1. `policy_file`: read the rules from YAML, once, when the process starts.
2. `decisions`: turn an event into its `Facts`, find the first `Rule` that matches them, and return the `Decision`: the
   level at which the event is recorded, its tags, and whether a loss raises an error.
"""

from otel_audit.policy.decisions import Decision, Decisions, Facts, Level, Rule
from otel_audit.policy.policy_file import Policy, read_policy

__all__ = ["Decision", "Decisions", "Facts", "Level", "Policy", "Rule", "read_policy"]
