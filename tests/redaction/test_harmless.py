"""What is no secret stays: a trail that hides what happened is no trail."""

from __future__ import annotations

import random

import pytest

from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.screen import without_secrets
from otel_audit.redaction.values import is_card_integer

_HEX_32 = "4bf92f3577b34da6a3ce929d0e0e4736"
_SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_UUID = "0192f3a0-7c1d-7abc-8def-0123456789ab"
_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

HARMLESS = [
    "session: alice logged in",
    "Session: started by Alice (admin).",
    "authorization: alice may not read salaries",
    "authorization: alice@example.com denied",
    "deleted the secret: payments-db",
    "deleted the secret: payments-db-v2, kept the secrets: billing",
    "credentials: those of bob, revoked",
    "pass: 3, fail: 1",
    '{"pass": 3, "fail": 1}',
    "auth: failed for bob, pin: set, pw: changed, psk: none, sid: closed",
    "auth=ldap, auth=OIDC, pass=12, sid=S-1-5-21-1004336348-1177238915-682003330-512",
    "(CONNECT_DATA=(SID=ORCL))",
    "sid: S-1-5-21-1004336348-1177238915-682003330-512",
    "token bucket refilled: 40 tokens",
    "key rotation: done by carol",
    "status installed dbus-user-session:amd64 1.14.10-1, python3-jwt:all 2.6.0-1",
    "def tests(session: nox.Session) -> None:\n    api = Api(session=requests.Session())",
    "def login(password: Optional[str], token: dict[str, Any]) -> None: ...",
    "Password:\n  The password must have twelve characters.",
    "password:\n  required",
    "POST /password -> 204, POST /token -> 200, POST /reset-password -> 404",
    f"GET /invite/{_UUID} -> 200, GET /verify/{_UUID} -> 200, GET /auth/callback -> 302",
    "the password was Version2 and the token Sha256",
    "GET /caf%C3%A9/%41lice?q=a%26b -> 200",
    "Tom &amp; Jerry &quot;said&quot; so, \\u003cb\\u003e",
    "age\n  Input should be a valid integer [type=int_parsing, input_value='abc', input_type=str]",
    '[{"type":"int_parsing","loc":["body","age"],"msg":"Input should be a valid integer","input":"abc"}]',
    'Content-Disposition: form-data; name="comment"\r\n\r\nno secret\r\n--x',
    "\u0441\u0435\u0441\u0441\u0438\u044f: \u0410\u043b\u0438\u0441\u0430 \u0432\u043e\u0448\u043b\u0430",
    "event password_reset, POST /password_reset -> 200",
    "session: active, otp: sent, password: ********\ncookie: accepted",
    "authorization: user alice has no role reader",
    "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-AbCdEf",
    "permission token:create, action=secret:Read",
    "  File 'auth.py', line 42\n    token = get_token(user)\n    secret = self._secret\n  def login(password: str):",
    "?code=ERR_TOO_MANY_REQUESTS_429",
    "pass=12 fail=3 passed=12 bypass=true",
    "curl -u alice https://example.com/a:b",
    "mysql -uroot -P 3306 feast",
    'key="driver_id" value="42", {"name": "token_count", "value": 5}',
    "usage: run [--token-limit 5] [--secret-name db] [--no-password --verbose]",
    "ALTER TABLE users DROP COLUMN password; SELECT 'a'",
    "sk-learn-Pipeline-V2-Feature-View-2026",
    "4000+5000+6000+7000, 2026.1125.0343.0012",
    "input_tokens=812 output_tokens: 12 token_count=5 max_tokens: 3",
    "author: Ann, secretary: Bob, tokenizer: bpe",
    "Bearer authentication failed",
    "Basic authentication required",
    'WWW-Authenticate: Bearer realm="api", error="invalid_token"',
    "token: expired",
    "password is wrong",
    "password: required",
    "PWD=/srv/app",
    "sk-learn-pipeline-feature-view",
    "task-sk-1 finished",
    "http://host:8080/users/alice@example.com",
    "mailto:alice@example.com",
    "PATCH /sessions/42 -> 204",
    "authorization: denied",
    "-----BEGIN CERTIFICATE-----",
    "eyJ is how they start",
    "missing: 'password', 'email', 'name'",
    "<input><tokens>5</tokens></input>",
    _UUID,
    _SHA1,
    _SHA256,
    _PNG,
    f"commit {_SHA1}",
    f"HEAD is now at {_SHA1[:7]} Merge branch 'main'",
    f"sha256:{_SHA256}",
    f'etag: "{_HEX_32}"',
    f"md5 {_HEX_32}  dump.tar.gz",
    f"00-{_HEX_32}-00f067aa0ba902b7-01",
    f"trace_id={_HEX_32} span_id=00f067aa0ba902b7",
    f"X-Request-Id: {_UUID}",
    f"GET /users/{_UUID}/orders?page=2&sort=desc -> 200",
    f"/callback?state={_UUID}",
    f"?key={_UUID}",
    f"?key={_SHA256}",
    "GET /search?q=token+ring&lang=en -> 200",
    "GET /items?code=404&page=1 -> 200",
    "/country?code=DE",
    "?key=driver_hourly_stats_fresh_view",
    "?sort_key=created_at&partition_key=2026-11-25T03",
    "2026-11-25T03:43:00.123456+00:00",
    "2026-11-25 03:43:00,123",
    "1795596031231887000",
    "time_ns=1795596031231887000 observed_ns=1795596031231887111",
    "1795596031231",
    "1795596031231887",
    "0.4111111111111111",
    "pi is 3.141592653589793",
    "order 4111-1111-1111-1112",
    "4111 1111 1111",
    "4111-1111 1111-1111",
    "phone +49 30 901820 and +1 415 555 2671",
    "IBAN DE89 3704 0044 0532 0130 00",
    "EAN 4006381333931",
    "10.0.0.1, 2001:db8::1, fe80::1%eth0",
    "alice@example.com",
    "user alice logged in with a passkey",
    "author: Ann, authority: registrar, authored_by: Bob",
    "tokens used: 12",
    "max_tokens=1024, temperature=0.7, top_p=1",
    "prompt_tokens: 5, completion_tokens: 7, total_tokens: 12",
    "tokenizer=bpe, detokenize=true",
    "the secretary approved it",
    "keyboard and monkey",
    "primary_key=id foreign_key=user_id",
    "public_key_algorithm=ed25519",
    "Authorization failed for role admin",
    "authorization: missing",
    "credentials expired",
    "password must have 12 characters",
    "Passwords do not match",
    "session expired after 30 min",
    "cookie consent given",
    "kubernetes pod skaffold-dev-7d9f8b6c5-x2k4q restarted",
    "image registry.example.com/team/app:1.2.3@sha256:" + _SHA256,
    "python-httpx/0.27.0",
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "arn:aws:iam::123456789012:role/reader",
    "projects/p1/locations/europe-west1/featureViews/driver_stats",
    "SELECT id, name FROM users WHERE author = 'x'",
    "https://example.com/a/b?x=1#section-2",
    "https://user@example.com/repo.git",
    "git@example.com:team/repo.git",
    "postgresql://db.example.com:5432/feast",
    "s3://bucket/key/part-00000.parquet",
    "file:///var/lib/otel-audit/shop",
    "skill-level: 5; sk-1; ask-me-anything",
    "hf_transfer enabled",
    "gho st town, ghp",
    "price is $2 and $5 or $15",
    "$6.50 and $2a",
    "SKU SK1234567890",
    "discord.com/channels/123456789012345678",
    "Basic auth is off",
    "bearer of bad news",
    "The token bucket has 100 tokens",
    "AKIA is a prefix",
    "-----BEGIN PUBLIC KEY-----",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHk alice",
    "👩\u200d💻 and \u200fעברית\u200e and می\u200cخواهم",
    "wi\u00adth soft hyphens in a long wo\u00adrd",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays_wherever_it_stands(text: str) -> None:
    event = {
        "event_type": "a",
        "principal": {"username": text},
        "action": {"path": text},
        "detail": text,
        "attributes": {"note": text, "list": [text]},
    }

    assert without_secrets(text) == text
    assert Redactor().clean(event) == event


def test_times_and_ids_of_64_bits_are_no_card_numbers() -> None:
    chance = random.Random(6)
    times = [str(chance.randrange(1_600_000_000, 2_000_000_000) * 10**9 + chance.randrange(10**9)) for _ in range(3000)]
    ids = [str(chance.randrange(10**18, 2**63)) for _ in range(3000)]
    others = [number for number in times + ids if not number.startswith("62")]

    assert [number for number in others if without_secrets(f"at {number} done") != f"at {number} done"] == []


def test_a_number_is_a_card_number_only_with_prefix_length_and_check_digit() -> None:
    assert is_card_integer(4111111111111111)
    assert is_card_integer(378282246310005)
    assert is_card_integer(30569309025904)
    assert not is_card_integer(4111111111111112)
    assert not is_card_integer(1111111111111117)
    assert not is_card_integer(4111111111111)
    assert not is_card_integer(-4111111111111111)
