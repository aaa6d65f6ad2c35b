"""The table of patterns of secrets in a text. They are written for RE2.

They work on UTF-8 bytes. A negated class is then one byte wide, and the set of all patterns stays small enough to run
in a few microseconds. A character beyond ASCII may be used in a pattern, but not in a class.
"""

from __future__ import annotations

from typing import Final

from otel_audit.redaction.formats import SERVICE_TOKENS
from otel_audit.redaction.values import (
    CARD_NUMBER,
    REDACTED,
    SecretPattern,
    block,
    has_a_digit,
    is_basic_credential,
    is_card_number,
    is_generated,
    is_opaque,
    is_random,
    link_secret,
    named_value,
    short_named_value,
)

__all__ = ["KEY_BEGIN", "KEY_END", "OPEN_AT_THE_END", "OPTION", "PATTERNS", "REDACTED", "SecretPattern"]

# A quoted value runs to its closing quote, or to the end of the text when there is none. The first form is JSON inside
# a JSON string. No left-over of a password that holds the other quote or an escaped one may remain.
_QUOTED = (
    r"""(?:b|r|u|f|br|rb)?(?:\"\"\"((?s:.+?))(?:\"\"\"|\z)|\'\'\'((?s:.+?))(?:\'\'\'|\z)"""
    r"""|\\+"((?:[^"\\]|\\+[^"\\])+)|"((?:[^"\\]|\\(?s:.))+)|'((?:[^'\\]|\\(?s:.))+))"""
)
# An unquoted value may hold commas, but not the name of the next assignment: `password=a,b,user=alice`.
_BARE = r"""([^\s&;,"']+(?:,[^\s&;,=:"']+)*)(?:[\s&;,"']|\z)|([^\s&;,"']+)"""
_BARE_IN_JSON = r"""([^\s,"'\])}]+)"""
_BLANK = "(?:[ \\t]|\u00a0)"
_ARROW = "\u2192"
_WIDE = "\uff1a|\uff1d"  # the colon and equals sign of CJK text
_QUOTE_END = r"""(?:\\*["'\])}]|\\|%(?:25)*(?:2[27]|5[CD]))"""  # of a key, or of what holds it
_EQUALS = rf"(?:{_QUOTE_END}{{0,4}}{_BLANK}*(?:=>|:=|={{1,3}}|::?|%(?:25)*3[AD]|{_WIDE}){_BLANK}*)"
_SCHEME = (
    r"(?:(?:bearer|basic|token|api-?key|negotiate|digest|ntlm|oauth|bot|ssws|geniekey|sharedkey(?:lite)?|key)"
    rf"(?:{_BLANK}+|%20|\+))?"
)
# "Password" and "token" in the languages of most services. \b does not stand before a letter that is not ASCII.
_TRANSLATIONS = (
    "passwort|kennwort|contrase(?:\u00f1|n\u0303|n)a|contrasenya|mot[_ -]?de[_ -]?passe|\\bmdp|\\bsenha|palavra-passe"
    "|wachtwoord|l(?:\u00f6|o)senord|salasana|\\bpassord|adgangskode|jelsz(?:\u00f3|o)|\\bhas(?:\u0142|l)o|\\bheslo"
    "|(?:\u015f|\\bs)ifre|\\blozinka|(?:\u043f|\u041f)\u0430\u0440\u043e\u043b\u044c|\u041f\u0410\u0420\u041e\u041b\u042c"
    "|\u0442\u043e\u043a\u0435\u043d|\u5bc6\u7801|\u5bc6\u78bc|\u53e3\u4ee4|\u4ee4\u724c|\u30d1\u30b9\u30ef\u30fc\u30c9"
    "|\u6697\u8a3c\u756a\u53f7|\u30c8\u30fc\u30af\u30f3|\ube44\ubc00\ubc88\ud638|\uc554\ud638|\ud1a0\ud070"
    "|\u0643\u0644\u0645\u0629 \u0627\u0644\u0645\u0631\u0648\u0631|\u05e1\u05d9\u05e1\u05de[\u05d4\u05d0]"
)
_NAMES = (
    # Of `arn:aws:secretsmanager:eu-west-1:123456789012:secret:name` the name is no secret: it says what was read.
    r"pass[_ -]?words?|passwd|pass[_ -]?phrase|passcode|passkey|(?:\A:?|[^:]|[^0-9]:)secrets?|token|api[_ .-]?key"
    r"|(?:access|account|app|application|auth|encryption|functions|hmac|license|master|private|secret|session|shared"
    r"|signing|storage|subscription)[_ .-]?key(?:[_ .-]?id)?|client-key-data"
    r"|(?:db|database|e?mail|ldap|mysql|postgres|redis|root|smtp|user)[_-]pass"
    r"|shared[_-]?access[_-]?signature|x-(?:amz|goog)-signature|client[_-]?assertion|code[_-]?verifier|credentials?"
    r"|\bcreds|authorization|(?:auth(?:orization)?|backup|device|mfa|pin|recovery|verification)[_ -]?code|\bt?otp"
    r"|\bcv[cv]2?|session[_ .-]?id|phpsessid|aspxauth|connect\.sid|(?:\b|_)session|csrf|xsrf|jwt|bearer"
    f"|{_TRANSLATIONS}"
)
# Names that mean something else in a sentence, and are those of secrets as keys.
_SHORT = "(?:pass|pw|auth|sid|psk|pin|clave|parola)"


def _assigned(names: str, bare: str = _BARE) -> str:
    return rf"(?i)(?:{names}){_EQUALS}{_SCHEME}(?:{_QUOTED}|{bare})"


_KEY_TEXT = "[A-Za-z0-9_-]"
_JSON_IN_BASE64 = "(?:eyJ|eyAi|ewog|ew0K)"  # {" and { with a blank or a line behind it

_KEY_LABEL = r"[A-Z0-9 +%]{1,60}PRIVATE(?:[ +]|%20)KEY(?:(?:[ +]|%20)BLOCK)? ?-{4,5}"
KEY_BEGIN: Final = f"-{{4,5}} ?BEGIN{_KEY_LABEL}"
"""The first line of a private key, with its blanks as they are or as in a form or query."""
KEY_END: Final = f"-{{4,5}} ?END{_KEY_LABEL}"
"""The last line of a private key."""

OPTION: Final = (
    r"--(?:[a-z0-9]{1,32}[_.-]){0,4}(?:password|passwd|passphrase|pass|pwd|token|secret|credentials?|api[_-]?key"
    r"|(?:access|account|auth|encryption|master|private|secret|session|signing|storage)[_-]?key)"
)
"""An option of a command line whose value is a secret."""

OPEN_AT_THE_END: Final = (
    rf"{_JSON_IN_BASE64}{_KEY_TEXT}{{400,}}={{0,2}}\z"
    r"""|://(?:[^\s/?#:@"'<>]*:[^\s@"'<>]{400,}|[A-Za-z0-9_.~-]{400,})\z"""
)
"""The beginning of a JWT, or of an address with a password, that goes on behind the end of what is looked at."""

PATTERNS: tuple[SecretPattern, ...] = (
    SecretPattern(
        "private_key",
        rf"{KEY_BEGIN}(?s:.*?)(?:{KEY_END}|\z)"
        r"|Private-Lines:[ \t]*[0-9]+\s+(?s:.*?)(?:Private-(?:MAC|Hash)|\z)"
        r"|b3BlbnNzaC1rZXktdjE[A-Za-z0-9+/=\s]{40,}"
        r"|LS0tLS1CRUdJTiB(?:QUk|SU0Eg|FQyBQ|FTkN|PUEVO|EU0Eg)[A-Za-z0-9+/=]{20,}"
        r"|MI[IG][A-Za-z0-9+/]{2,3}(?:IBADANBgkqhkiG9w0BAQEFAASC|IBAAKC)[A-Za-z0-9+/=\s]*"
        rf"|((?:[A-Za-z0-9+/=]{{8,}}\s+)+){KEY_END}",
        "RFC 7468 section 10; RFC 9580 section 6.2; SSH2's form of them; a block without its end is removed to the end "
        "of the text, one without its beginning from its first line on; PuTTY: key files; OpenSSH, PEM in base64, "
        "PKCS #1 and #8: what a key begins with",
        sign=rf"{KEY_BEGIN}|{KEY_END}|Private-Lines:|b3BlbnNzaC1rZXktdjE|LS0tLS1CRUdJTiB|IBADANBgkqhki|IBAAKC",
    ),
    SecretPattern(
        "jwt",
        rf"{_JSON_IN_BASE64}{_KEY_TEXT}{{8,}}={{0,2}}\.(?:{_KEY_TEXT}*={{0,2}}(?:\.{_KEY_TEXT}*){{1,3}}|eyJ{_KEY_TEXT}{{2,}})"
        rf"|\bv[1-4]\.(?:local|public)\.{_KEY_TEXT}{{40,}}",
        "RFC 7515 section 7.1 (three parts), RFC 7516 section 7.1 (five): base64url of a JSON object starts with eyJ; "
        "some writers pad it; PASETO",
    ),
    SecretPattern(
        "bearer",
        rf"""(?i)\bbearer(?:{_BLANK}+|%20|\+)["']?([A-Za-z0-9._~+/=%-]{{6,}})""",
        "RFC 6750 section 2.1, b64token",
    ),
    SecretPattern(
        "basic",
        rf"(?i)\bbasic(?:{_BLANK}+|%20|\+)([A-Za-z0-9+/_-]{{3,}}={{0,2}})",
        "RFC 7617 section 2",
        is_basic_credential,
    ),
    *SERVICE_TOKENS,
    SecretPattern(
        "url_token",
        r"""://([A-Za-z0-9_.~-]{20,})(?::(?:x-oauth-basic)?)?@""",
        "RFC 3986 section 3.2.1; ours: a token instead of a user, as git hosts take it",
        has_a_digit,
    ),
    SecretPattern(
        "url_password",
        # The colon of a host is followed by digits and then the path. Anything else is a password, even with a /.
        r"""://[^\s/?#:@"'<>]*:(?:([^\s/?#"'<>]+)|([0-9]*[^\s/?#@0-9"'<>][^\s@"'<>]*))@"""
        r"""|(?i:%3A%2F%2F[^\s/?#:@"'<>%&]*%3A)([^\s/?#:@"'<>&]+?)%40""",
        "RFC 3986 section 3.2.1, as it is and in a query",
    ),
    SecretPattern(
        "data_source_name",
        r"""jdbc:oracle:[a-z0-9]{2,8}:[^\s/:@"']+/([^\s@"']+)@|:([^\s@:/"'()]+)@(?:tcp|unix)\(""",
        "Oracle JDBC: thin URLs; go-sql-driver/mysql: DSN",
        sign=r"jdbc:oracle:|@(?:tcp|unix)\(",
    ),
    SecretPattern(
        "query_code",
        r"(?i)(?:[?&;#]|%3F|%26|\b)(?:code|assertion|samlresponse|signature|sig|hmac|ticket|auth)(?:=|%3D)"
        r"([A-Za-z0-9._~+/%-]{16,}=*)",
        "RFC 6749 section 4.1.2; RFC 7521 section 4; signed URLs; ours: what names a secret in a query only",
        is_random,
    ),
    SecretPattern(
        "query_key",
        r"(?i)(?:[?&]|%3F|%26)(?:key|apikey|sid|access)(?:=|%3D)([A-Za-z0-9._~+/%-]{16,}=*)",
        "ours: a key in a query that is neither a word nor an id",
        is_opaque,
    ),
    SecretPattern(
        "query_password",
        r"""(?i)(?:[?&]|%3F|%26)(?:pass|pw|pin)(?:=|%3D)([^\s&;,"'#]+)""",
        "ours: what is short for a password in a query, and something else elsewhere",
    ),
    SecretPattern(
        "password_hash",
        r"\$(?:2[abxy]?|argon2(?:id|i|d)|5|6|y|7|scrypt|apr1|pbkdf2[a-z0-9_-]{0,16})\$[A-Za-z0-9./=,$+-]{20,}"
        r"|(?:\A|[^A-Za-z0-9*])\*[0-9A-F]{36,40}\b",
        "crypt(5): hashing methods; PHC string format; MySQL: mysql_native_password",
    ),
    SecretPattern("card_number", CARD_NUMBER, "ISO/IEC 7812-1; the check digit has the last word", is_card_number),
    SecretPattern(
        "cookie",
        rf"(?i)\bcookie{_EQUALS}(?:{_QUOTED}|([^\r\n]+))|\bcookies{_EQUALS}([{{\[(][^\r\n]+)",
        "RFC 6265 sections 4.1 and 4.2: to the line's end",
    ),
    SecretPattern(
        "authorization",
        rf"(?i)authorization{_EQUALS}(?:digest|hawk|oauth|mac|signature|hmac[a-z0-9-]*|aws4-[a-z0-9-]+|scram-[a-z0-9-]+)"
        rf"(?:{_BLANK}+|%20)([a-z]{{1,32}}=[^\r\n]+)"
        rf"|authorization{_EQUALS}[a-z][a-z0-9_-]{{1,32}}(?:{_BLANK}+|%20)([^\s\"',;]{{16,}})",
        "RFC 9110 section 11.4: parameters to the line's end, and the credentials of a scheme of any name",
        has_a_digit,
    ),
    SecretPattern(
        "block",
        rf"(?i)(?:{_NAMES}){_QUOTE_END}{{0,1}}:[ \t]+[|>][-+0-9]{{0,2}}[ \t]*\r?\n"
        r"((?:[ \t]+[^\r\n]+(?:\r?\n)?)+)",
        "YAML 1.2 section 8.1: block scalars",
        sign=r":[ \t]+[|>][-+0-9]{0,2}[ \t]*\r?\n[ \t]",
    ),
    SecretPattern(
        "assignment",
        _assigned(_NAMES),
        "ours: query strings (RFC 6749), headers, JSON, YAML, connection strings",
        sign=rf"(?i)(?:{_NAMES}){_EQUALS}",  # with the value, the states of the set of all patterns are multiplied
        part=named_value,
    ),
    SecretPattern(
        "key",
        rf"""(?i)(?:(?:{_NAMES})\\*["']|["']{_SHORT}\\*["'])\s*(?::|=>)\s*(?:{_QUOTED}|{_BARE_IN_JSON})""",
        "RFC 8259 section 4; ours: literals of Python, JavaScript and Ruby",
        sign=rf"""(?i)(?:(?:{_NAMES})\\*["']|["']{_SHORT}\\*["'])\s*(?::|=>)""",
        part=short_named_value,
    ),
    SecretPattern(
        "short_name",
        rf"""(?i)(?:\b|_){_SHORT}(?:=|%(?:25)*3D)(?:{_QUOTED}|([^\s&;,"']+))"""
        rf"""|\bx-{_SHORT}\\*["']?[ \t]*[:=][ \t]*(?:{_QUOTED}|([^\s;,"']+))"""
        rf"""|(?:\A|\r\n){_SHORT}:[ \t]*([^\r\n]+)\r\n""",
        "ours: forms, queries, headers, settings",
        part=short_named_value,
    ),
    SecretPattern(
        "validation_error",
        rf"""(?i)(?:(?:{_NAMES})[^\s\\]*|\b{_SHORT})(?:\s|\\+[rn])+[^\n\[]*?\[type=[a-z_]+, """
        r"""input_value=((?s:.+?))(?:, input_type=|\z)"""
        r"""|, input_value=(\{[^\n]*?\.\.\.(?s:.+?))(?:, input_type=|\z)""",
        "Pydantic: str() of a ValidationError; of a long input it leaves out the middle, where a key may be",
        sign="(?i), input_value=",
    ),
    SecretPattern(
        "validation_input",
        rf"""(?i)\\*["']loc\\*["']\s*:\s*[\[(][^\])]*?(?:{_NAMES}|["']{_SHORT}\\*["'])[^\])]*[\])]"""
        rf"""[^{{}}]*?\\*["']input\\*["']\s*:\s*(?:{_QUOTED}|{_BARE_IN_JSON})""",
        "Pydantic: errors() of a ValidationError; FastAPI: the body of its 422",
        sign=r"""(?i)["']loc\\*["']\s*:""",
        part=named_value,
    ),
    SecretPattern(
        "lines",
        rf"""(?i)(?:{_NAMES}):[ \t]*\r?\n([ \t]+[^\s][^\r\n]*|-[ \t][^\r\n]+)""",
        "YAML 1.2 sections 8.2.1 and 8.2.2: sequences and mappings",
        sign=r""":[ \t]*\r?\n(?:[ \t]|-)""",
        part=block,
    ),
    SecretPattern(
        "form_part",
        rf"""(?i)form-data[^\r\n]*?\bname=\\*["']?[^"'\r\n;\\]*?(?:{_NAMES}|\b{_SHORT}\b)[^"'\r\n;\\]*\\*["']?"""
        r"""[^\r\n\\]*(?:(?:\r?\n|(?:\\+r)?\\+n)[^\r\n\\]+)*?(?:(?:\r?\n){2}|(?:(?:\\+r)?\\+n){2})"""
        r"""((?s:.+?))(?:(?:\r?\n|(?:\\+r)?\\+n)--|\z)""",
        "RFC 7578 section 4.2",
        sign="(?i)form-data",
    ),
    SecretPattern(
        "link",
        r"""(?i)/(?:(?:reset|set|change|forgot(?:ten)?|new|create)[_-]?password|password[_-]?(?:reset|change|recovery)"""
        r"""|password/(?:reset|change|set|new|edit)|reset|magic(?:[_-]?(?:link|login))?|passwordless|one[_-]?time[_-]?\w*)"""
        r"""(?:/[A-Za-z0-9_=.-]{1,64}){0,2}/([A-Za-z0-9._~%+=:-]{16,})"""
        r"""|/(?:tokens?|auth|otp|verify(?:[_-]?e?mail)?|verification|confirm(?:ation|[_-]?e?mail)?|activat(?:e|ion)"""
        r"""|(?:accept[_-]?)?invit(?:e|ation)|(?:sign|log)[_-]?in|sign[_-]?up|unsubscribe|recover(?:y)?|sso)"""
        r"""/(?:[a-z0-9_-]{1,32}/){0,1}([A-Za-z0-9._~%+=:-]{16,})""",
        "ours: who has the link is let in",
        part=link_secret,
    ),
    SecretPattern(
        "said",
        rf"""(?i)(?:\b(?:pass[_ -]?word|passwd|pass[_ -]?phrase|secret|token|api[_ -]?key|{_TRANSLATIONS})"""
        rf"""(?:[ \t]+(?:is|was|to|equals)?[ \t]*|[ \t]*(?:[-=]+>|\||{_ARROW}|-)[ \t]*)["'(]?"""
        r"""|(?-i:\bAUTH)[ \t]+(?:[a-z0-9_.-]+[ \t]+)??)([^\s"',;|()]{8,})(?:[\s"',;|()]|\z)""",
        "ours: in a sentence or a table, what can be no word; Redis: AUTH; SMTP: RFC 4954 section 4",
        is_generated,
    ),
    SecretPattern(
        "said_code",
        r"(?i)\b(?:verification|security|recovery|login|one[- ]time|mfa|2fa|otp)[ ](?:pass)?code(?:[ ]is)?:?[ ]+"
        r"([0-9]{4,8})\b",
        "ours: what is sent in messages",
    ),
    SecretPattern(
        "pair",
        rf"""(?i)[(\[][ \t]*b?["'][a-z0-9_.-]{{0,40}}(?:{_NAMES}|cookie)["'],[ \t]*{_QUOTED}\\*["'][ \t]*[)\]]""",
        "ours: headers as ASGI and http.client hold them, printed: (b'x-api-key', b'...')",
    ),
    SecretPattern(
        "name_and_value",
        rf"""(?i)\b(?:name|key|k)\\*["']?[ \t]*[:=][ \t]*\\*["']?[a-z0-9_.-]{{0,40}}(?:{_NAMES})\\*["']?"""
        rf"""[\s,;]{{1,16}}\\*["']?v(?:alue)?\\*["']?[ \t]*[:=][ \t]*(?:{_QUOTED}|{_BARE})"""
        rf"""|["']v(?:alue)?\\*["'][ \t]*:[ \t]*{_QUOTED}\\*["'][\s,]{{1,16}}\\*["'](?:name|key|k)\\*["']"""
        rf"""[ \t]*:[ \t]*\\*["'][a-z0-9_.-]{{0,40}}(?:{_NAMES})\\*["']""",
        "Kubernetes: EnvVar; Amazon ECS: KeyValuePair; ours: the same in XML",
        sign=r"""(?i)[\s,;"'\\]v(?:alue)?\\*["']?[ \t]*[:=]|["']v(?:alue)?\\*["'][ \t]*:""",
    ),
    SecretPattern(
        "element",
        rf"(?i)<[a-z0-9_.:-]{{0,40}}(?:{_NAMES})(?:\s[^<>]*)?>(?:<!\[CDATA\[((?s:.+?))(?:\]\]>|\z)|([^<]+))",
        "ours: elements of XML and SOAP",
    ),
    SecretPattern(
        "pwd",
        # PWD=/srv is a working directory.
        _assigned(r"pwd", r"""([^\s&;,"'/][^\s&;,"']*)"""),
        "ours: ODBC and ADO.NET connection strings",
    ),
    SecretPattern(
        "command_line",
        rf"(?i){OPTION}(?:[ \t]+|\n)(?:{_QUOTED}|([^\s\"'-]\S*))",
        "ours: options of command lines",
        sign=rf"(?i){OPTION}(?:[ \t\n]|\z)",  # the value may be the next item of a list
    ),
    SecretPattern(
        "command",
        r"""(?i)\bcurl\b[^\n|;]*?\s(?:-u|--user|--proxy-user)[ =]?["']?[^\s:"']+:([^\s"']+)"""
        rf"|\bsshpass[ \t]+-p[ \t]*(?:{_QUOTED}|(\S+))"
        r"""|\b(?:mysql(?:dump|admin)?|mariadb)\b[^\n|;]*?\s(?-i:-p)([^\s"']\S*)"""
        r"""|\bldap[a-z]{3,8}\b[^\n|;]*?\s(?-i:-w)[ \t]*([^\s"']\S*)|\bredis-cli\b[^\n|;]*?\s-a[ \t]+(\S+)"""
        r"""|\bsqlplus[ \t][^\n|;]*?[a-z0-9_$#]+/([^\s"'@/]+)@""",
        "curl, sshpass, mysql, LDAP, Redis, SQL*Plus: their own options",
    ),
    SecretPattern(
        "option_in_list",
        rf"""(?i)["']{OPTION}\\*["'],[ \t]*{_QUOTED}""",
        "ours: the arguments of a command as a list, printed",
    ),
    SecretPattern(
        "sql",
        rf"(?i)\bidentified[ \t]+(?:with[ \t]+\S+[ \t]+)?(?:by|as)[ \t]+(?:password[ \t]+)?{_QUOTED}"
        rf"|\b(?:create|alter)[ \t]+(?:role|user|login)\b[^\n;]*?\bpassword[ \t]*=?[ \t]*{_QUOTED}"
        rf"|\bwith[ \t]+(?:encrypted[ \t]+)?password[ \t]+{_QUOTED}|\bpassword\([ \t]*{_QUOTED}",
        "MySQL: CREATE USER; PostgreSQL: CREATE ROLE; Transact-SQL: CREATE LOGIN",
    ),
)
