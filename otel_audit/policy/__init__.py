"""Which events are kept, at which level, and which must not fail."""

from otel_audit.policy.decisions import Decision, Decisions, Facts, Level, Rule
from otel_audit.policy.policy_file import Policy, read_policy

__all__ = ["Decision", "Decisions", "Facts", "Level", "Policy", "Rule", "read_policy"]
