"""What a secret looks like in a text: one table of patterns, for RE2.

They work on UTF-8 bytes: a negated class is then one byte wide, and the set of all patterns stays small enough to run
in a few microseconds. A character beyond ASCII may stand in a pattern, but not in a class.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass

from otel_audit.redaction.card_numbers import CARD_NUMBER, is_card_number

__all__ = ["PATTERNS", "REDACTED", "SecretPattern"]

REDACTED = "[REDACTED]"
_REDACTED = REDACTED.encode()

# Words that follow "token:" or "Bearer" in ordinary messages ("token: expired", "Bearer authentication failed").
_ORDINARY = frozenset(
    b"""a an and allowed apikey auth authentication authorization basic bearer cannot challenge changed closed
    credential credentials denied digest disabled empty enabled error expected expired failed failure false flow for
    found granted has header incorrect invalid is key malformed mismatch missing must negotiate nil no none not null
    ok opened password provided realm rejected required reset revoked rotated scheme scope secret should success the
    token tokens true undefined unknown unset updated valid was wrong""".split()
)


def _is_not_ordinary(value: bytes) -> bool:
    return value != _REDACTED and value.strip(b"[]{}()<>.,:;!?=").lower() not in _ORDINARY


def _is_basic_credential(value: bytes) -> bool:
    """Whether it decodes to `user:password`, or is too long for a word. Source: RFC 7617, section 2."""
    if not _is_not_ordinary(value):
        return False
    digits = value.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    whole = digits + b"A" * (-len(digits) % 4)
    return len(value) >= 20 or b":" in base64.b64decode(whole)


_LETTER, _DIGIT = re.compile(rb"[A-Za-z]"), re.compile(rb"[0-9]")
_HEX_OR_UUID = re.compile(rb"[0-9a-fA-F-]+")


def _has_a_digit(value: bytes) -> bool:
    """Whether it is no plain word: what was made at random has a digit somewhere."""
    return _is_not_ordinary(value) and _DIGIT.search(value) is not None


def _is_opaque(value: bytes) -> bool:
    """Whether it is neither a word, nor a number, nor an id in hex: a `key` may be any of these and no secret."""
    return _has_a_digit(value) and _LETTER.search(value) is not None and _HEX_OR_UUID.fullmatch(value) is None


@dataclass(frozen=True, slots=True)
class SecretPattern:
    """One kind of secret in a text. The groups of `regex` are the secret part; without groups it is the whole match.

    `source`: where the format is documented. `is_secret` has the last word on a matched part.
    """

    name: str
    regex: str
    source: str
    is_secret: Callable[[bytes], bool] = _is_not_ordinary


# A quoted value runs to its closing quote, or to the end of the text when there is none. The first form is JSON inside
# a JSON string. No left-over of a password that holds the other quote or an escaped one may remain.
_QUOTED = r"""(?:b|r|u|f|br|rb)?(?:\\+"((?:[^"\\]|\\+[^"\\])+)|"((?:[^"\\]|\\(?s:.))+)|'((?:[^'\\]|\\(?s:.))+))"""
# An unquoted value may hold commas, but not the name of the next assignment: `password=a,b,user=alice`.
_BARE = r"""([^\s&;,"']+(?:,[^\s&;,=:"']+)*)(?:[\s&;,"']|\z)|([^\s&;,"']+)"""
_BLANK = "(?:[ \\t]|\u00a0)"
_WIDE = "\uff1a|\uff1d"  # the colon and equals sign of CJK text
_EQUALS = rf"""["'\\\])}}]{{0,4}}{_BLANK}*(?:=>|:=|==?|:|%3D|%3A|{_WIDE}){_BLANK}*"""
_SCHEME = rf"(?:(?:bearer|basic|token|apikey|negotiate|digest)(?:{_BLANK}+|%20))?"
_NAMES = (
    r"pass[_ -]?word|passwd|pass[_ -]?phrase|passcode|secret|token|api[_ .-]?key"
    r"|(?:access|account|auth|encryption|master|private|secret|session|signing|storage)[_ .-]?key(?:[_ .-]?id)?"
    r"|shared[_-]?access[_-]?signature|x-(?:amz|goog)-signature|client[_-]?assertion|code[_-]?verifier|credentials?"
    r"|authorization|session[_ .-]?id|phpsessid|connect\.sid|\bsession|csrf|xsrf|jwt|bearer|\botp"
)


def _assigned(names: str, bare: str = _BARE) -> str:
    return rf"(?i)(?:{names}){_EQUALS}{_SCHEME}(?:{_QUOTED}|{bare})"


_KEY_TEXT = "[A-Za-z0-9_-]"

PATTERNS: tuple[SecretPattern, ...] = (
    SecretPattern(
        "private_key",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)"
        r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
        "RFC 7468 section 10; RFC 9580 section 6.2; a block without its end is removed to the end of the text",
    ),
    SecretPattern(
        "jwt",
        rf"eyJ{_KEY_TEXT}{{8,}}\.(?:{_KEY_TEXT}*(?:\.{_KEY_TEXT}*){{1,3}}|eyJ{_KEY_TEXT}{{2,}})",
        "RFC 7515 section 7.1 (three parts), RFC 7516 section 7.1 (five): base64url of a JSON object starts with eyJ",
    ),
    SecretPattern(
        "bearer",
        rf"""(?i)\bbearer(?:{_BLANK}+|%20)["']?([A-Za-z0-9._~+/=%-]{{6,}})""",
        "RFC 6750 section 2.1, b64token",
    ),
    SecretPattern(
        "basic",
        rf"(?i)\bbasic(?:{_BLANK}+|%20)([A-Za-z0-9+/_-]{{3,}}={{0,2}})",
        "RFC 7617 section 2",
        _is_basic_credential,
    ),
    SecretPattern(
        "aws_access_key_id",
        r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b|\bABSK[A-Za-z0-9+/]{40,}={0,2}",
        "AWS IAM: unique identifiers; Amazon Bedrock: API keys",
    ),
    SecretPattern(
        "github", r"gh[pousr]_[A-Za-z0-9_]{30,}|github_pat_[A-Za-z0-9_]{22,}", "GitHub: about authentication, formats"
    ),
    SecretPattern(
        "gitlab",
        r"\bgl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|wt|soat|ffct)-[A-Za-z0-9_.-]{20,}",
        "GitLab: token overview, prefixes",
    ),
    SecretPattern(
        "slack",
        r"\bxox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}|\bxapp-[0-9]-[A-Za-z0-9-]{10,}",
        "Slack: token types",
    ),
    SecretPattern(
        "slack_webhook",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9+/_-]{20,})",
        "Slack: incoming webhooks; the path is the credential",
    ),
    SecretPattern(
        "chat_webhook",
        r"discord(?:app)?\.com/api/webhooks/[0-9]{15,22}/([A-Za-z0-9_-]{40,})"
        r"|\.webhook\.office\.com/webhookb2/([A-Za-z0-9@/-]{40,})"
        r"|api\.telegram\.org/bot([0-9]{6,12}:[A-Za-z0-9_-]{30,})",
        "Discord: webhooks; Microsoft Teams: incoming webhooks; Telegram: bot API",
    ),
    SecretPattern(
        "google_api_key", r"\bAIza[A-Za-z0-9_-]{35}|\bAQ\.A[A-Za-z0-9_-]{40,}", "Google Cloud: API keys, of both forms"
    ),
    SecretPattern(
        "google_oauth",
        r"\bya29\.[A-Za-z0-9_.-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{24,}|\b1//0[A-Za-z0-9_-]{30,}",
        "Google: OAuth 2.0 access tokens, client secrets, refresh tokens",
    ),
    SecretPattern(
        "azure_sas", r"(?i)\bsig(?:=|%3D)([A-Za-z0-9%+/=_-]{20,})", "Azure Storage: service SAS, field `sig`"
    ),
    SecretPattern(
        "azure_client_secret", r"\b[A-Za-z0-9_~.-]{3}[78]Q~[A-Za-z0-9_~.-]{31,34}", "Microsoft Purview: Entra secret"
    ),
    SecretPattern("stripe", r"\b(?:[sr]k_(?:live|test)|whsec)_[A-Za-z0-9+/=]{10,}", "Stripe: API keys"),
    SecretPattern(
        "sk_key",
        rf"\bsk-(?:(?:ant|proj|svcacct|admin|or|lf|None)-{_KEY_TEXT}{{16,}}|[A-Za-z0-9]{{20,}})",
        "OpenAI, Anthropic, OpenRouter, Langfuse: API keys; the kind or plain letters set sk-learn-… apart",
    ),
    SecretPattern(
        "model_service",
        r"\b(?:gsk|r8)_[A-Za-z0-9]{37,}|\bxai-[A-Za-z0-9]{60,}|\bpplx-[A-Za-z0-9]{40,}"
        r"|\blsv2_[a-z]{2}_[0-9a-f]{32}_[0-9a-f]{10}",
        "Groq, Replicate, xAI, Perplexity, LangSmith: API keys",
    ),
    SecretPattern(
        "developer_service",
        r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|\blin_(?:api|oauth)_[A-Za-z0-9]{32,}|\bPMAK-[0-9a-f]{24}-[0-9a-f]{34}"
        r"|\bNRAK-[A-Z0-9]{27}|\bsntry[su]_[A-Za-z0-9+/=_-]{40,}|\bpul-[0-9a-f]{40}|\bsbp_[0-9a-f]{40}"
        r"|\brubygems_[0-9a-f]{48}|\bpscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{32,}|\bATATT3[A-Za-z0-9_=-]{50,}"
        r"|\bdp\.(?:pt|st|sa|ct|scim|audit)\.[A-Za-z0-9_.-]{40,}|\.atlasv1\.[A-Za-z0-9_=-]{60,}|\bntn_[A-Za-z0-9]{40,}",
        "Shopify, Linear, Postman, New Relic, Sentry, Pulumi, Supabase, RubyGems, PlanetScale, Atlassian, Doppler, "
        "HCP Terraform, Notion: API tokens",
    ),
    SecretPattern("twilio", r"\bSK[0-9a-f]{32}\b", "Twilio: API key SIDs; an auth token is found by its name"),
    SecretPattern("mailgun", r"\bkey-[0-9a-f]{32}\b", "Mailgun: API keys"),
    SecretPattern("age", r"\bAGE-SECRET-KEY-1[0-9A-Z]{58}", "age: native X25519 identities"),
    SecretPattern("npm", r"\bnpm_[A-Za-z0-9]{36}", "npm: about access tokens"),
    SecretPattern("pypi", r"\bpypi-AgE[A-Za-z0-9_-]{40,}", "PyPI: API tokens are macaroons of version 2"),
    SecretPattern("hugging_face", r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}", "Hugging Face: user access tokens"),
    SecretPattern("databricks", r"\bdapi[0-9a-f]{32}(?:-[0-9]+)?", "Databricks: personal access tokens"),
    SecretPattern("vault", r"\bhv[sbr]\.[A-Za-z0-9_-]{24,}", "HashiCorp Vault: tokens"),
    SecretPattern("grafana", r"\bgl(?:sa|c)_[A-Za-z0-9+/=_]{32,}", "Grafana: service account and access policy tokens"),
    SecretPattern("digitalocean", r"\bdo[opr]_v1_[0-9a-f]{64}", "DigitalOcean: API tokens"),
    SecretPattern("docker", r"\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}", "Docker Hub: access tokens"),
    SecretPattern("sendgrid", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}", "SendGrid: API keys"),
    SecretPattern(
        "url_token",
        r"""://([A-Za-z0-9_.~-]{20,})(?::(?:x-oauth-basic)?)?@""",
        "RFC 3986 section 3.2.1; ours: a token instead of a user, as git hosts take it",
        _has_a_digit,
    ),
    SecretPattern(
        "url_password",
        # Behind the colon of a host come digits and then the path: what starts otherwise is a password, even with a /.
        r"""://[^\s/?#:@"'<>]*:(?:([^\s/?#"'<>]+)|([0-9]*[^\s/?#@0-9"'<>][^\s@"'<>]*))@""",
        "RFC 3986 section 3.2.1",
    ),
    SecretPattern(
        "query_code",
        r"(?i)(?:[?&;#]|%3F|%26|\b)(?:code|assertion|samlresponse|signature|sig|hmac|ticket|auth)(?:=|%3D)"
        r"([A-Za-z0-9._~+/%-]{16,}=*)",
        "RFC 6749 section 4.1.2; RFC 7521 section 4; signed URLs; ours: what names a secret in a query only",
        _has_a_digit,
    ),
    SecretPattern(
        "query_key",
        r"(?i)(?:[?&]|%3F|%26)(?:key|apikey|sid|access)(?:=|%3D)([A-Za-z0-9._~+/%-]{16,}=*)",
        "ours: a key in a query that is neither a word nor an id",
        _is_opaque,
    ),
    SecretPattern(
        "password_hash",
        r"\$(?:2[abxy]?|argon2(?:id|i|d)|5|6|y|7|scrypt|pbkdf2[a-z0-9_-]{0,16})\$[A-Za-z0-9./=,$+-]{20,}",
        "crypt(5): hashing methods; PHC string format",
    ),
    SecretPattern("card_number", CARD_NUMBER, "ISO/IEC 7812-1; the check digit has the last word", is_card_number),
    SecretPattern(
        "cookie", rf"(?i)\bcookie{_EQUALS}(?:{_QUOTED}|([^\r\n]+))", "RFC 6265 sections 4.1 and 4.2: to the line's end"
    ),
    SecretPattern(
        "assignment", _assigned(_NAMES), "ours: query strings (RFC 6749), headers, JSON, YAML, connection strings"
    ),
    SecretPattern(
        "pair",
        rf"""(?i)[(\[][ \t]*b?["'][a-z0-9_.-]{{0,40}}(?:{_NAMES}|cookie)["'],[ \t]*{_QUOTED}\\*["'][ \t]*[)\]]""",
        "ours: headers as ASGI and http.client hold them, printed: (b'x-api-key', b'...')",
    ),
    SecretPattern(
        "element", rf"(?i)<[a-z0-9_.:-]{{0,40}}(?:{_NAMES})(?:\s[^<>]*)?>([^<]+)", "ours: elements of XML and SOAP"
    ),
    SecretPattern(
        "pwd",
        # PWD=/srv is a working directory.
        _assigned(r"pwd", r"""([^\s&;,"'/][^\s&;,"']*)"""),
        "ours: ODBC and ADO.NET connection strings",
    ),
    SecretPattern(
        "command_line",
        r"(?i)--(?:[a-z0-9]{1,32}-){0,4}(?:password|passwd|token|secret|api-?key|access-key|private-key)[ \t]+"
        rf"(?:{_QUOTED}|([^\s\"'-]\S*))",
        "ours: options of command lines",
    ),
)
