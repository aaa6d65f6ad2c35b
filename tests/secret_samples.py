"""Made-up secrets of every kind that the table of patterns knows, each in a text as it occurs in practice."""

from __future__ import annotations

import base64
import random
import string
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

__all__ = ["ALNUM", "BASE64URL", "HEX", "SAMPLES", "Sample", "chars", "digits_in", "planted", "with_check_digit"]

ALNUM = string.ascii_letters + string.digits
BASE64URL = ALNUM + "-_"
HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
PASSWORD = ALNUM + "!#$%^*()_+|~{}[]<>?./"


def chars(alphabet: str, shortest: int, longest: int | None = None) -> SearchStrategy[str]:
    # Not `st.text`, which likes to draw words of our own source: "principa" is a secret that every event holds.
    lengths, seeds = st.integers(shortest, longest or shortest), st.integers(0, 2**64 - 1)
    return st.builds(lambda length, seed: "".join(random.Random(seed).choices(alphabet, k=length)), lengths, seeds)


def basic_credentials() -> SearchStrategy[str]:
    pair = st.tuples(chars(ALNUM, 1, 12), chars(PASSWORD, 6, 20)).map(":".join)
    return pair.map(lambda text: base64.b64encode(text.encode()).decode())


def digits_in(secret: SearchStrategy[str]) -> SearchStrategy[str]:
    """A digit more, so that it is no word of an ordinary message."""
    return secret.map(lambda text: text + "7")


def card_numbers(separator: str = "") -> SearchStrategy[str]:
    """Numbers of 16 digits with a right check digit, grouped by four."""
    heads = st.tuples(st.sampled_from(["4539", "5105", "2221", "6011", "3530", "6212"]), chars(string.digits, 11))
    whole = heads.map("".join).map(with_check_digit)
    return whole.map(lambda digits: separator.join(digits[at : at + 4] for at in range(0, 16, 4)))


def with_check_digit(digits: str) -> str:
    """The digits and the one that makes the sum, every second one doubled, a multiple of ten."""
    return next(f"{digits}{last}" for last in range(10) if _sum_of(f"{digits}{last}") % 10 == 0)


def _sum_of(digits: str) -> int:
    return sum(int(two) for one in digits[-1::-2] for two in one) + sum(
        int(part) for one in digits[-2::-2] for part in str(2 * int(one))
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """A secret and the text around it that stays."""

    before: str
    secret: SearchStrategy[str]
    after: str = ""


# Built at run time, so that no scanner takes this file for a leak.
SAMPLES: dict[str, list[Sample]] = {
    "private_key": [
        Sample(
            "",
            chars(ALNUM + "+/\n", 64, 200).map(
                lambda body: f"-----BEGIN RSA {'PRIVATE'} KEY-----\n{body}\n-----END RSA {'PRIVATE'} KEY-----"
            ),
        ),
        Sample("", chars(ALNUM, 40, 80).map(lambda body: f"-----BEGIN {'PRIVATE'} KEY-----\n{body}")),
        Sample("", chars(ALNUM, 40, 80).map(lambda body: f"-----BEGIN+RSA+{'PRIVATE'}+KEY-----%0A{body}")),
        Sample("", chars(ALNUM, 40, 80).map(lambda body: f"---- BEGIN SSH2 ENCRYPTED {'PRIVATE'} KEY ----\n{body}")),
        Sample("", chars(ALNUM, 64).map(lambda body: f"Private-Lines: 1\n{body}\n"), "Private-MAC: x"),
    ],
    "jwt": [
        Sample(
            "",
            st.tuples(chars(BASE64URL, 10, 30), chars(BASE64URL, 10, 60), chars(BASE64URL, 20, 43)).map(
                lambda parts: f"eyJ{parts[0]}.eyJ{parts[1]}.{parts[2]}"
            ),
        ),
        Sample("", chars(BASE64URL, 30).map(lambda part: f"eyAi{part}==.eyJ{part}=.{part}")),
        Sample("", chars(BASE64URL, 60).map(lambda part: f"v4.local.{part}")),
    ],
    "bearer": [Sample("Bearer ", digits_in(chars(BASE64URL + ".~+/", 8, 60))), Sample("bearer%20", chars(HEX, 32))],
    "basic": [Sample("Basic ", basic_credentials()), Sample("basic ", basic_credentials())],
    "aws_pair": [
        Sample("AKIA" + "A1" * 8 + ",", chars(ALNUM + "+/", 40), "\n"),
        Sample("configure set aws_secret_access_key ", chars(ALNUM + "+/", 40)),
    ],
    "aws_access_key_id": [Sample("", chars(UPPER, 16).map(lambda rest: "AKIA" + rest))],
    "github": [
        Sample("", chars(ALNUM, 36).map(lambda rest: "ghp_" + rest)),
        Sample("", chars(ALNUM + "_", 82).map(lambda rest: "github_pat_" + rest)),
    ],
    "gitlab": [Sample("", chars(BASE64URL, 20, 40).map(lambda rest: "glpat-" + rest))],
    "slack": [Sample("", chars(ALNUM + "-", 20, 60).map(lambda rest: "xoxb-" + rest))],
    "slack_webhook": [
        Sample("https://hooks.slack.com/services/", chars(ALNUM, 24).map(lambda rest: f"T0/B0/{rest}")),
        Sample("https://hooks.slack-gov.com/services/", chars(ALNUM, 24).map(lambda rest: f"T0/B0/{rest}")),
    ],
    "google_api_key": [Sample("", chars(BASE64URL, 35).map(lambda rest: "AIza" + rest))],
    "google_oauth": [Sample("", chars(BASE64URL, 40).map(lambda rest: "ya29." + rest))],
    "azure_sas": [Sample("?sv=2022-11-02&sig=", chars(ALNUM, 40).map(lambda rest: rest + "%3D"), "&se=2030")],
    "azure_client_secret": [Sample("", chars(ALNUM, 31).map(lambda rest: "a1b8Q~" + rest))],
    "azure_key": [
        Sample("", chars(ALNUM + "/", 76).map(lambda rest: f"{rest}+ASt" + "a1b2cQ==")),
        Sample("", chars(ALNUM, 76).map(lambda rest: f"{rest}AZDO" + "a1b2")),
    ],
    "stripe": [Sample("", chars(ALNUM, 24).map(lambda rest: "sk_" + "live_" + rest))],
    "sk_key": [
        Sample("", chars(BASE64URL, 40).map(lambda rest: "sk-" + "ant-" + rest)),
        Sample("", chars(ALNUM, 48).map(lambda rest: "sk-" + rest)),
        Sample("", chars(BASE64URL, 22).map(lambda rest: f"sk-my_service-{rest}-aB3dE5")),
    ],
    "npm": [Sample("", chars(ALNUM, 36).map(lambda rest: "npm_" + rest))],
    "pypi": [Sample("", chars(BASE64URL, 80).map(lambda rest: "pypi-" + "AgE" + rest))],
    "hugging_face": [Sample("", chars(string.ascii_letters, 34).map(lambda rest: "hf_" + rest))],
    "databricks": [Sample("", chars(HEX, 32).map(lambda rest: "dapi" + rest))],
    "vault": [Sample("", chars(BASE64URL, 90).map(lambda rest: "hvs." + rest))],
    "grafana": [Sample("", chars(ALNUM, 32).map(lambda rest: f"glsa_{rest}_0a1b2c3d"))],
    "digitalocean": [Sample("", chars(HEX, 64).map(lambda rest: "dop_v1_" + rest))],
    "docker": [Sample("", chars(BASE64URL, 27).map(lambda rest: "dckr_pat_" + rest))],
    "sendgrid": [
        Sample("", st.tuples(chars(BASE64URL, 22), chars(BASE64URL, 43)).map(lambda two: f"SG.{two[0]}.{two[1]}"))
    ],
    "url_password": [
        Sample("postgres://feast:", digits_in(chars(ALNUM + "!$%@^*()_+~.", 8, 20)), "@db.example.com:5432/feast"),
        Sample("dsn=postgres%3A%2F%2Ffeast%3A", digits_in(chars(ALNUM, 8, 20)), "%40db.example.com%2Ffeast"),
        Sample("redis://:", chars(string.ascii_letters + "/?#", 8, 20).map(lambda rest: "x" + rest), "@cache:6379/0"),
    ],
    "data_source_name": [
        Sample("jdbc:oracle:thin:scott/", digits_in(chars(ALNUM + "!#$", 8, 20)), "@//db.example.com:1521/x"),
        Sample("feast:", digits_in(chars(ALNUM + "!#$", 8, 20)), "@tcp(127.0.0.1:3306)/feast"),
    ],
    "telegram": [Sample("", chars(BASE64URL, 33).map(lambda rest: "123456789:AA" + rest))],
    "chat_webhook": [
        Sample("https://discord.com/api/webhooks/123456789012345678/", chars(BASE64URL, 68)),
        Sample("https://a.webhook.office.com/webhookb2/", chars(ALNUM + "@-", 40, 80).map(lambda rest: f"{rest}/b/c")),
        Sample("https://api.telegram.org/bot", chars(BASE64URL, 35).map(lambda rest: "123456789:" + rest), "/send"),
    ],
    "model_service": [
        Sample("", chars(ALNUM, 52).map(lambda rest: "gsk_" + rest)),
        Sample("", chars(ALNUM, 80).map(lambda rest: "xai-" + rest)),
        Sample("", chars(ALNUM, 48).map(lambda rest: "pplx-" + rest)),
        Sample("", chars(HEX, 42).map(lambda rest: f"lsv2_pt_{rest[:32]}_{rest[32:]}")),
    ],
    "developer_service": [
        Sample("", chars(HEX, 32).map(lambda rest: "shpat_" + rest)),
        Sample("", chars(HEX, 58).map(lambda rest: f"PMAK-{rest[:24]}-{rest[24:]}")),
        Sample("", chars(ALNUM + "_", 60).map(lambda rest: "sntrys_" + rest)),
        Sample("", chars(HEX, 40).map(lambda rest: "pul-" + rest)),
        Sample("", chars(ALNUM, 43).map(lambda rest: "dp.pt." + rest)),
        Sample("", chars(BASE64URL, 180).map(lambda rest: "ATCTT3xFfGN0" + rest)),
        Sample("", chars(HEX, 64).map(lambda rest: "pat" + "A1" * 7 + f".{rest}")),
    ],
    "payment_service": [
        Sample("", chars(BASE64URL, 22).map(lambda rest: "sq0atp-" + rest)),
        Sample("", chars(HEX, 36).map(lambda rest: "access-production-" + rest)),
    ],
    "twilio": [Sample("", chars(HEX, 32).map(lambda rest: "SK" + rest))],
    "mailgun": [Sample("", chars(HEX, 32).map(lambda rest: "key-" + rest))],
    "age": [Sample("", chars(UPPER, 58).map(lambda rest: "AGE-SECRET-KEY-1" + rest))],
    "url_token": [
        Sample("https://", digits_in(chars(ALNUM, 30, 40)), "@git.example.com/a.git"),
        Sample("https://", digits_in(chars(HEX, 40)), ":x-oauth-basic@git.example.com/a.git"),
    ],
    "query_code": [
        Sample("GET /callback?state=a&code=", digits_in(chars(BASE64URL, 20, 60)), " -> 302"),
        Sample("?SAMLResponse=", digits_in(chars(ALNUM + "%", 100))),
    ],
    "query_key": [Sample("/v1/models?key=", chars(string.ascii_letters, 30).map(lambda rest: rest + "z7"), "&alt=sse")],
    "query_password": [Sample("/login?user=al&pass=", chars(ALNUM, 8, 20), "&next=home")],
    "password_hash": [
        Sample("", chars(ALNUM + "./", 53).map(lambda rest: f"$2b$12${rest}")),
        Sample("", chars(ALNUM + "+/", 65).map(lambda rest: f"$argon2id$v=19$m=65536,t=3,p=4${rest[:22]}${rest[22:]}")),
    ],
    "card_number": [
        Sample("card ", card_numbers(), " declined"),
        Sample("card=", card_numbers(" ")),
        Sample("Visa: ", card_numbers("-"), "."),
        Sample("", card_numbers("\u00a0")),
        Sample("card=", card_numbers("+"), "&cvc=none"),
        Sample("", card_numbers(".")),
        Sample("", card_numbers("\u2013")),
        Sample("", card_numbers(), ".0 in a table"),
    ],
    "cookie": [
        Sample("Set-Cookie: ", chars(ALNUM, 12).map(lambda rest: f"a={rest}; b={rest[::-1]}")),
        Sample("get(url, cookies=", chars(ALNUM, 12).map(lambda rest: f"{{'sid': '{rest}'}}")),
    ],
    "authorization": [
        Sample("Authorization: Digest ", chars(HEX, 32).map(lambda rest: f'username="al", uri="/", response="{rest}"')),
        Sample("Authorization: ", digits_in(chars(ALNUM, 20, 40)).map(lambda rest: f"Snowflake {rest}")),
    ],
    "block": [
        Sample("password: |\n", digits_in(chars(ALNUM, 8, 20).map(lambda rest: f"  {rest}\n  {rest}")), "\na: b")
    ],
    "assignment": [
        Sample("login?user=al&password=", digits_in(chars(PASSWORD, 8, 20)), "&next=home"),
        Sample("api_key: ", digits_in(chars(PASSWORD, 8, 20))),
        Sample('{"client_secret":"', chars(PASSWORD + " &,;'", 10, 20).map(lambda text: text + "7"), '","a":1}'),
        Sample('{\\"password\\":\\"', digits_in(chars(ALNUM + " &,;'", 10, 20)), '\\",\\"a\\":1}'),
        Sample("passwd='", digits_in(chars(PASSWORD + ' &,;"', 10, 20)), "' and more"),
        Sample("aws_secret_access_key = ", chars(ALNUM + "+/", 40)),
        Sample(
            "DefaultEndpointsProtocol=https;AccountKey=", chars(ALNUM + "+/", 86).map(lambda rest: rest + "=="), ";"
        ),
        Sample("X-Api-Key: ", chars(HEX, 32)),
        Sample("{b'x-api-key': b'", digits_in(chars(PASSWORD, 8, 20)), "', b'host': b'a'}"),
        Sample("Authorization: Token ", chars(HEX, 40)),
        Sample("Authorization: SharedKey ", digits_in(chars(ALNUM + "+/", 43)).map(lambda rest: f"account:{rest}=")),
        Sample("Ocp-Apim-Subscription-Key: ", chars(HEX, 32)),
        Sample("SMTP_PASS=", chars(ALNUM, 8, 20)),
        Sample("recovery code: ", digits_in(chars(ALNUM, 8))),
        Sample("laravel_session=", digits_in(chars(ALNUM, 40))),
        Sample("body=%7B%22password%22%3A%22", digits_in(chars(ALNUM, 8, 20)), "%22%7D"),
        Sample("next=%252Fcb%253Faccess_token%253D", digits_in(chars(ALNUM, 20))),
    ],
    "name_and_value": [
        Sample('{"name": "DB_PASSWORD", "value": "', digits_in(chars(ALNUM, 8, 20)), '"}'),
        Sample("- name: DB_PASSWORD\n  value: ", digits_in(chars(ALNUM, 8, 20))),
        Sample('<add key="Password" value="', digits_in(chars(ALNUM, 8, 20)), '"/>'),
    ],
    "pair": [
        Sample("headers: [(b'host', b'a'), (b'x-api-key', b'", digits_in(chars(PASSWORD, 8, 20)), "'), (b'a', b'b')]"),
        Sample('[["Set-Cookie", "', digits_in(chars(ALNUM + "=; ", 8, 20)), '"], ["Host", "a"]]'),
    ],
    "element": [
        Sample(
            "<user>al</user><wsse:Password Type='x'>",
            digits_in(chars(PASSWORD.replace("<", ""), 8, 20)),
            "</wsse:Password>",
        )
    ],
    "pwd": [Sample("Server=db;Uid=sa;Pwd=", digits_in(chars(ALNUM + "!#$%^*", 8, 20)), ";Encrypt=yes")],
    "pass": [Sample("user=al pass=", digits_in(chars(string.ascii_letters, 8, 20)), " host=db")],
    "command_line": [
        Sample("run --db-password ", digits_in(chars(ALNUM + "!#$%^*/.", 8, 20)), " --verbose"),
        Sample("run --secret-key ", digits_in(chars(ALNUM, 8, 20))),
        Sample("run --api_key ", digits_in(chars(ALNUM, 8, 20))),
    ],
    "command": [
        Sample("curl -s -u alice:", digits_in(chars(ALNUM + "!#$%", 8, 20)), " https://example.com"),
        Sample("sshpass -p ", digits_in(chars(ALNUM, 8, 20)), " ssh host"),
        Sample("mysql -uroot -p", digits_in(chars(ALNUM, 8, 20)), " feast"),
    ],
    "option_in_list": [Sample("run(['a', '--password', '", digits_in(chars(ALNUM, 8, 20)), "'])")],
    "sql": [
        Sample("CREATE USER feast IDENTIFIED BY '", chars(ALNUM + " ;,", 8, 20), "'"),
        Sample("ALTER ROLE feast LOGIN PASSWORD '", chars(ALNUM, 8, 20), "'"),
        Sample("CREATE LOGIN feast WITH PASSWORD '", chars(ALNUM, 8, 20), "'"),
    ],
}


def planted() -> SearchStrategy[tuple[str, str, str]]:
    """The name of a pattern, a text with a secret of that kind, and the secret."""

    def texts(case: tuple[str, Sample]) -> SearchStrategy[tuple[str, str, str]]:
        name, sample = case
        around = st.text(" äß…\n☃()Ж", max_size=30)  # nothing that a secret is made of
        return st.tuples(around, sample.secret, around).map(
            lambda parts: (name, f"{parts[0]} {sample.before}{parts[1]}{sample.after} {parts[2]}", parts[1])
        )

    return st.sampled_from([(name, sample) for name, samples in SAMPLES.items() for sample in samples]).flatmap(texts)
