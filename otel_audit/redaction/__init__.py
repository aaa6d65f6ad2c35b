"""What may not leave the process: secrets are removed, and what is too large is cut."""

from otel_audit.redaction.caps import Caps
from otel_audit.redaction.redactor import Redactor, Rules

__all__ = ["Caps", "Redactor", "Rules"]
