"""Decide which events are recorded, how much of each, and which must not fail.

`policy_file` reads the rules from YAML, once. `decisions` asks them about each event: its `Facts` meet the first `Rule`
that fits, and the `Decision` says the level and what happens if the event cannot be recorded.
"""

from otel_audit.policy.decisions import Decision, Decisions, Facts, Level, Rule
from otel_audit.policy.policy_file import Policy, read_policy

__all__ = ["Decision", "Decisions", "Facts", "Level", "Policy", "Rule", "read_policy"]
