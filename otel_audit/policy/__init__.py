"""Which events are kept, at which level, and which must not fail."""

from otel_audit.policy.decision import Decision, Level
from otel_audit.policy.decisions import Decisions
from otel_audit.policy.facts import Facts
from otel_audit.policy.policy_file import Policy, read_policy
from otel_audit.policy.rule import Rule

__all__ = ["Decision", "Decisions", "Facts", "Level", "Policy", "Rule", "read_policy"]
