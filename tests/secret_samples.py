"""Made-up secrets of every kind that the table of patterns knows, each in a text as it occurs in practice."""

from __future__ import annotations

import base64
import random
import string
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

__all__ = [
    "ALNUM",
    "BASE64URL",
    "HEX",
    "SAMPLES",
    "TOKENS",
    "Sample",
    "chars",
    "digits_in",
    "planted",
    "with_check_digit",
]

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


LOWER = string.ascii_lowercase + string.digits


def token(*parts: str | tuple[str, int], before: str = "", after: str = "") -> Sample:
    """A token of words and of random characters: (alphabet, how many)."""
    made = [st.just(part) if isinstance(part, str) else chars(*part) for part in parts]
    return Sample(before, st.tuples(*made).map("".join), after)


# One or more for each service of `otel_audit.redaction.formats.FORMATS`, by its name there.
TOKENS: dict[str, list[Sample]] = {
    "AWS": [token("AKIA", (UPPER, 16)), token("A3T", (UPPER, 17))],
    "Amazon Bedrock": [token("ABSK", (ALNUM, 120), "==")],
    "Amazon Bedrock, short-term": [token("bedrock-api-key-", (ALNUM, 80))],
    "Alibaba Cloud": [token("LTAI", (ALNUM, 20))],
    "Tencent Cloud": [token("AKID", (ALNUM, 32))],
    "Google Cloud": [token("AIza", (BASE64URL, 35)), token("AQ.A", (BASE64URL, 48))],
    "Google OAuth": [token("ya29.", (BASE64URL, 40)), token("GOCSPX-", (BASE64URL, 28))],
    "Azure Storage": [token((ALNUM, 40), "%3D", before="?sv=2022-11-02&sig=", after="&se=2030")],
    "Yandex Cloud": [token("AQVN", (BASE64URL, 36)), token("t1.", (ALNUM, 20), ".", (BASE64URL, 86))],
    "DigitalOcean": [token("dop_v1_", (HEX, 64))],
    "Scalingo": [token("tk-us-", (BASE64URL, 48))],
    "Heroku": [token("HRKU-AA", (BASE64URL, 58))],
    "Fly.io": [token("fo1_", (BASE64URL, 43)), token("fm2_", (ALNUM + "+/", 100)), token("fm1r_", (ALNUM, 100))],
    "OpenShift": [token("sha256~", (BASE64URL, 43))],
    "Cloudflare Origin CA": [token("v1.0-", (HEX, 24), "-", (HEX, 146))],
    "ClickHouse Cloud": [token("4b1d", (ALNUM, 38))],
    "PlanetScale": [token("pscale_tkn_", (ALNUM, 43))],
    "Neon": [token("napi_", (LOWER, 64))],
    "Supabase": [token("sbp_", (HEX, 40)), token("sb_secret_", (BASE64URL, 31))],
    "Databricks": [token("dapi", (HEX, 32)), token("dapi", (HEX, 32), "-2")],
    "Aiven": [token("AVNS_", (ALNUM, 19))],
    "GitHub": [token("ghp_", (ALNUM, 36)), token("github_pat_", (ALNUM + "_", 82))],
    "GitLab": [
        token("glpat-", (BASE64URL, 20)),
        token("glrt-t3_", (BASE64URL, 30)),
        token("GR1348941", (BASE64URL, 20)),
    ],
    "Atlassian": [token("ATCTT3xFfGN0", (BASE64URL, 180)), token("ATBB", (ALNUM, 32))],
    "Sourcegraph": [
        token("sgp_", (HEX, 40)),
        token("sgp_local_", (HEX, 40)),
        token("sgp_", (HEX, 16), "_", (HEX, 40)),
    ],
    "npm": [token("npm_", (ALNUM, 36))],
    "PyPI": [token("pypi-", "AgE", (BASE64URL, 80))],
    "RubyGems": [token("rubygems_", (HEX, 48))],
    "NuGet": [token("oy2", (LOWER, 43))],
    "crates.io": [token("cio", (ALNUM, 32))],
    "Clojars": [token("CLOJARS_", (LOWER, 60))],
    "JFrog": [token("AKCp", (ALNUM, 69)), token("cmVmdGtu", (ALNUM, 56))],
    "Docker Hub": [token("dckr_pat_", (BASE64URL, 27))],
    "Buildkite": [token("bkua_", (HEX, 40))],
    "CircleCI": [token("CCIPAT_", (ALNUM, 22), "_", (HEX, 40))],
    "SonarQube": [token("squ_", (HEX, 40))],
    "Harness": [token("pat.", (BASE64URL, 22), ".", (ALNUM, 24), ".", (ALNUM, 20))],
    "Octopus Deploy": [token("API-", (UPPER, 26))],
    "Infracost": [token("ico-", (ALNUM, 32))],
    "Prefect": [token("pnu_", (ALNUM, 36))],
    "Postman": [token("PMAK-", (HEX, 24), "-", (HEX, 34))],
    "ReadMe": [token("rdme_", (LOWER, 70))],
    "Vercel": [token("vercel_blob_rw_", (ALNUM, 40))],
    "Netlify": [token("nfp_", (ALNUM, 36))],
    "Deno Deploy": [token("ddp_", (ALNUM, 36))],
    "SettleMint": [token("sm_aat_", (ALNUM, 16))],
    "HashiCorp Vault": [token("hvs.", (BASE64URL, 90)), token("hvb.", (BASE64URL, 138))],
    "Pulumi": [token("pul-", (HEX, 40))],
    "Doppler": [token("dp.pt.", (ALNUM, 43))],
    "1Password": [
        token("ops_eyJ", (ALNUM, 250), "=="),
        token("A3-", (UPPER, 6), "-", (UPPER, 6), "-", (UPPER, 5), "-", (UPPER, 5), "-", (UPPER, 5), "-", (UPPER, 5)),
        token("A3-", (UPPER, 6), "-", (UPPER, 11), "-", (UPPER, 5), "-", (UPPER, 5), "-", (UPPER, 5)),
    ],
    "age": [token("AGE-SECRET-KEY-1", (UPPER, 58))],
    "Tailscale": [token("tskey-auth-", (ALNUM, 12), "CNTRL-", (ALNUM, 32))],
    "Defined Networking": [token("dnkey-", (BASE64URL, 26), "-", (BASE64URL, 52))],
    "Authress": [token("sc_", (ALNUM, 12), ".", (LOWER, 4), ".acc-", (LOWER, 16), ".", (BASE64URL, 64))],
    "Adobe": [token("p8e-", (ALNUM, 32))],
    "42 Intra": [token("s-s4t2ud-", (HEX, 64))],
    "Grafana": [token("glsa_", (ALNUM, 32), "_0a1b2c3d"), token("eyJrIjoi", (ALNUM, 80), "==")],
    "New Relic": [token("NRAK-", (UPPER, 27)), token("NRJS-", (HEX, 19)), token("NRII-", (BASE64URL, 32))],
    "Sentry": [token("sntrys_", (ALNUM + "_", 60)), token("sntryu_", (HEX, 64))],
    "Dynatrace": [token("dt0c01.", (UPPER, 24), ".", (UPPER, 64))],
    "PostHog": [token("phx_", (ALNUM, 43))],
    "Groq, Replicate": [token("gsk_", (ALNUM, 52)), token("r8_", (ALNUM, 37))],
    "xAI": [token("xai-", (ALNUM, 80))],
    "Perplexity": [token("pplx-", (ALNUM, 48))],
    "LangSmith": [token("lsv2_pt_", (HEX, 32), "_", (HEX, 10))],
    "Cerebras": [token("csk-", (LOWER, 48))],
    "NVIDIA": [token("nvapi-", (BASE64URL, 64))],
    "Tavily": [token("tvly-dev-", (ALNUM, 32))],
    "Pinecone": [token("pcsk_", (ALNUM, 6), "_", (ALNUM, 63))],
    "Together": [token("tgp_v1_", (BASE64URL, 43))],
    "ElevenLabs": [token("sk_", (HEX, 48))],
    "E2B": [token("e2b_", (HEX, 40))],
    "Firecrawl": [token("fc-", (HEX, 32))],
    "Jina": [token("jina_", (HEX, 32), (BASE64URL, 28))],
    "LlamaCloud": [token("llx-", (ALNUM, 48))],
    "Weights & Biases": [token("wandb_v1_", (ALNUM, 77))],
    "Anyscale": [token("esecret_", (ALNUM, 32))],
    "Fireworks": [token("fw_", (ALNUM, 24))],
    "Hugging Face": [token("hf_", (string.ascii_letters, 34)), token("api_org_", (string.ascii_letters, 34))],
    "Slack": [token("xoxb-", (ALNUM + "-", 40)), token("xapp-1-", (UPPER, 11), "-", (HEX, 64))],
    "Slack webhooks": [
        token("T0/B0/", (ALNUM, 24), before="https://hooks.slack.com/services/"),
        token("T0/B0/", (ALNUM, 24), before="https://hooks.slack-gov.com/services/"),
    ],
    "Discord webhooks": [token((BASE64URL, 68), before="https://discord.com/api/webhooks/123456789012345678/")],
    "Microsoft Teams webhooks": [token((ALNUM + "@-", 60), "/b/c", before="https://a.webhook.office.com/webhookb2/")],
    "Telegram URLs": [token("123456789:", (BASE64URL, 35), before="https://api.telegram.org/bot", after="/send")],
    "Twilio": [token("SK", (HEX, 32))],
    "SendGrid": [token("SG.", (BASE64URL, 22), ".", (BASE64URL, 43))],
    "Mailgun": [token("key-", (HEX, 32))],
    "MailerSend": [token("mlsn.", (HEX, 64))],
    "Brevo": [token("xkeysib-", (HEX, 64), "-", (ALNUM, 16)), token("xsmtpsib-", (HEX, 64), "-", (ALNUM, 16))],
    "Resend": [token("re_", (ALNUM, 8), "_", (ALNUM, 24))],
    "Facebook": [token("EAAM", (ALNUM, 120)), token("EAAC", (ALNUM, 120))],
    "Stripe": [token("sk_", "live_", (ALNUM, 24)), token("rk_", "prod_", (ALNUM, 24))],
    "Square": [token("sq0atp-", (BASE64URL, 22)), token("EAAA", (ALNUM, 60))],
    "Braintree": [token("access_token$production$", (LOWER, 16), "$", (HEX, 32))],
    "Plaid": [token("access-production-", (HEX, 8), "-", (HEX, 4), "-", (HEX, 4), "-", (HEX, 4), "-", (HEX, 12))],
    "EasyPost": [token("EZAK", (ALNUM, 54))],
    "Flutterwave": [token("FLWSECK_TEST-", (LOWER, 32), "-X")],
    "Duffel": [token("duffel_live_", (BASE64URL, 43))],
    "Shippo": [token("shippo_live_", (HEX, 40))],
    "Shopify": [token("shpat_", (HEX, 32))],
    "Paddle": [token("pdl_live_apikey_", (LOWER, 26), "_", (ALNUM, 22), "_", (ALNUM, 3))],
    "Linear": [token("lin_api_", (ALNUM, 40))],
    "Notion": [token("ntn_", (ALNUM, 46)), token("secret_", (ALNUM, 43))],
    "Figma": [token("figd_", (BASE64URL, 40))],
    "Airtable": [token("pat", (ALNUM, 14), ".", (HEX, 64))],
    "HubSpot": [token("pat-na1-", (HEX, 8), "-", (HEX, 4), "-", (HEX, 4), "-", (HEX, 4), "-", (HEX, 12))],
    "Typeform": [token("tfp_", (BASE64URL, 59))],
    "Mapbox": [token("sk.eyJ", (BASE64URL, 80))],
    "Contentful": [token("CFPAT-", (BASE64URL, 43))],
    "Dropbox": [token("sl.", (BASE64URL, 130))],
    "Frame.io": [token("fio-u-", (BASE64URL, 64))],
    "Apify": [token("apify_api_", (ALNUM, 36))],
}


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
    "service_token": [sample for samples in TOKENS.values() for sample in samples],
    "facebook_app": [
        token((ALNUM, 27), "7", before="1234567890123456|"),
        token((ALNUM, 27), "7", before="access=123456789012345%7C"),
    ],
    "azure_devops": [token((ALNUM, 76), "AZDO", "a1b2")],
    "maxmind": [token((ALNUM, 6), "_", (ALNUM, 29), "_mmk")],
    "mailchimp": [token((HEX, 32), "-us12")],
    "hcp_terraform": [token((ALNUM, 14), ".atlasv1.", (ALNUM, 67))],
    "old_vault": [token("s.", (ALNUM, 23), "7")],
    "azure_client_secret": [
        Sample("", chars(ALNUM, 31).map(lambda rest: "a1b8Q~" + rest)),
        token("a1b3Q~", (ALNUM, 34)),
    ],
    "azure_key": [Sample("", chars(ALNUM + "/", 76).map(lambda rest: f"{rest}+ASt" + "a1b2cQ=="))],
    "sk_key": [
        Sample("", chars(BASE64URL, 40).map(lambda rest: "sk-" + "ant-" + rest)),
        Sample("", chars(ALNUM, 48).map(lambda rest: "sk-" + rest)),
        Sample("", chars(BASE64URL, 22).map(lambda rest: f"sk-my_service-{rest}-aB3dE5")),
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
    "key": [
        Sample('{"password": ', chars(ALNUM, 8, 20).map(lambda rest: f'["{rest}", {{"a": "{rest}"}}]'), ', "a": 1}'),
        Sample('"auths": {"x": {"auth": "', chars(ALNUM, 8, 20), '"}}'),
        Sample("{'credentials': ", chars(ALNUM, 8, 20).map(lambda rest: f"{{'value': '{rest}'")),
        Sample('{"token":\n  "', chars(ALNUM, 8, 20), '"}'),
    ],
    "short_name": [
        Sample("user=al pass=", digits_in(chars(string.ascii_letters, 8, 20)), " host=db"),
        Sample("X-Auth: ", chars(HEX, 32)),
        Sample("wpa_psk=", digits_in(chars(ALNUM, 8, 20))),
        Sample("GET /x?sid=", digits_in(chars(string.ascii_lowercase, 8, 20)), "&a=1"),
    ],
    "validation_error": [
        Sample(
            "1 validation error for Login\npassword\n  Input should be a valid integer [type=int_parsing, input_value=",
            chars(ALNUM, 8, 20).map(lambda rest: f"'{rest}'"),
            ", input_type=str]",
        ),
        Sample("[type=missing, input_value=", chars(ALNUM, 8, 20).map(lambda rest: f"{{'a': 1, 'pas...d': '{rest}'}}")),
    ],
    "validation_input": [
        Sample(
            '[{"type":"string_too_long","loc":["body","password"],"msg":"Too long","input":"',
            chars(ALNUM, 8, 20),
            '"}]',
        )
    ],
    "lines": [
        Sample("passwords:\n", chars(ALNUM, 8, 20).map(lambda rest: f"  - {rest}\n  - {rest}"), "\nuser: al"),
        Sample("a:\n  credentials:\n", chars(ALNUM, 8, 20).map(lambda rest: f"    value: {rest}"), "\n  b: c"),
    ],
    "form_part": [
        Sample(
            'Content-Disposition: form-data; name="password"\r\nContent-Type: text/plain\r\n\r\n',
            digits_in(chars(ALNUM, 8, 20)),
            "\r\n--x--",
        )
    ],
    "link": [
        Sample("GET /reset-password/", digits_in(chars(BASE64URL, 16, 40)), " -> 200"),
        Sample("https://example.com/auth/magic/", digits_in(chars(ALNUM, 20, 40))),
        Sample("/reset/MQ/", digits_in(chars(HEX, 32)), "/"),
    ],
    "said": [
        Sample("password is ", chars(ALNUM, 8, 20).map(lambda rest: f"a7B{rest}x9"), "."),
        Sample("machine x login y password ", chars(ALNUM, 8, 20).map(lambda rest: f"a7B{rest}x9")),
    ],
    "said_code": [Sample("Your verification code is ", chars(string.digits, 6))],
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
