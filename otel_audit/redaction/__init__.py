"""Keep secrets in the process, and cut what is too large.

An event passes `redactor.Redactor`. Read it in this order: `redactor` (what is done to each field), `screen` (which
parts of a text are secrets), `patterns` and `formats` (what secrets look like), `names` (which keys hold one),
`values` (what only looks like a secret, where a value ends, and how a text reads once it is decoded), `caps` (how large
a part may be, and how an event is made to fit into a line), `pseudonyms` (who acted and from where, made less exact).
"""

from otel_audit.redaction.caps import Caps
from otel_audit.redaction.redactor import Redactor, Rules

__all__ = ["Caps", "Redactor", "Rules"]
