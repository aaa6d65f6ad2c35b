"""Remove secrets from an event before it is written, and cut what is too large.

The life of one event, in reading order:

1. `redactor`: check cheaply whether there is anything to do, which there rarely is. If so, clean each field.
2. `screen`: find the secrets in a text. `patterns` and `formats` say what secrets look like. `values` decides whether a
   match is a secret or only looks like one, and where it ends, and decodes a text that was encoded.
3. `names`: decide by the name of a key whether its value is a secret.
4. `pseudonyms`: replace names by pseudonyms, and shorten what is known of the client, if the user's rules say so.
5. `caps`: limit the size of each part, and make the whole event fit into a line.
"""

from otel_audit.redaction.caps import Caps
from otel_audit.redaction.redactor import Redactor, Rules

__all__ = ["Caps", "Redactor", "Rules"]
