"""The formats of tokens and keys that reveal their service: one row for each.

Lengths are lower bounds if a service gives none or has changed them before, since a token that was cut is a secret too.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from otel_audit.redaction.values import SecretPattern, has_a_digit

__all__ = ["FORMATS", "SERVICE_TOKENS", "TokenFormat"]


class TokenFormat(msgspec.Struct, frozen=True):
    """The format of one service's tokens. The groups of `regex` are the secret part; without groups, all of it is.

    `source` is the place where the format is documented, or the public rule set that has it.
    """

    service: str
    regex: str
    source: str


_RULES: Final = "gitleaks rule set (MIT), 2026-11"

FORMATS: Final[tuple[TokenFormat, ...]] = (
    # Clouds
    TokenFormat("AWS", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b|\bA3T[A-Z0-9]{17}\b", "AWS IAM: unique identifiers"),
    TokenFormat("Amazon Bedrock", r"\bABSK[A-Za-z0-9+/]{40,}={0,2}", "Amazon Bedrock: long-term API keys"),
    TokenFormat(
        "Amazon Bedrock, short-term",
        r"\bbedrock-api-key-[A-Za-z0-9+/=]{20,}",
        "Amazon Bedrock: short-term API keys, a signed URL in base64",
    ),
    TokenFormat("Alibaba Cloud", r"\bLTAI[A-Za-z0-9]{12,26}\b", "Alibaba Cloud: AccessKey ids; " + _RULES),
    TokenFormat("Tencent Cloud", r"\bAKID[A-Za-z0-9]{32}\b", "Tencent Cloud: SecretId; GitHub secret scanning"),
    TokenFormat(
        "Google Cloud", r"\bAIza[A-Za-z0-9_-]{35}|\bAQ\.A[A-Za-z0-9_-]{40,}", "Google Cloud: API keys, both forms"
    ),
    TokenFormat(
        "Google OAuth",
        r"\bya29\.[A-Za-z0-9_.-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{24,}|\b1//0[A-Za-z0-9_-]{30,}|\bGOOG1E[A-Z0-9]{50,}",
        "Google: OAuth 2.0 access tokens, client secrets, refresh tokens; Cloud Storage: HMAC keys",
    ),
    TokenFormat(
        "Azure Storage", r"(?i:\bsig(?:=|%3D))([A-Za-z0-9%+/=_-]{20,})", "Azure Storage: service SAS, field sig"
    ),
    TokenFormat(
        "Yandex Cloud", r"\bAQVN[A-Za-z0-9_-]{35,38}|\bt1\.[A-Z0-9a-z_-]+={0,2}\.[A-Za-z0-9_-]{86}={0,2}", _RULES
    ),
    TokenFormat("DigitalOcean", r"\bdo[opr]_v1_[0-9a-f]{64}", "DigitalOcean: API tokens"),
    TokenFormat("Scalingo", r"\btk-us-[A-Za-z0-9_-]{48}", "Scalingo: API tokens; " + _RULES),
    TokenFormat("Heroku", r"\bHRKU-[A-Za-z0-9_-]{40,}", "Heroku: authorizations"),
    TokenFormat("Fly.io", r"\b(?:fm[12][ar]?|fo1)_[A-Za-z0-9+/=_-]{40,}", "Fly.io: access tokens"),
    TokenFormat("OpenShift", r"\bsha256~[A-Za-z0-9_-]{43}", "OpenShift: OAuth access tokens"),
    TokenFormat(
        "Cloudflare Origin CA", r"\bv1\.0-[0-9a-f]{24}-[0-9a-f]{100,}", "Cloudflare: Origin CA keys; " + _RULES
    ),
    TokenFormat("ClickHouse Cloud", r"\b4b1d[A-Za-z0-9]{38}\b", "ClickHouse Cloud: API key secrets; " + _RULES),
    TokenFormat(
        "PlanetScale", r"\bpscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{32,}", "PlanetScale: service tokens, passwords"
    ),
    TokenFormat("Neon", r"\bnapi_[a-z0-9]{60,}", "Neon: API keys"),
    TokenFormat(
        "Supabase", r"\bsbp_[0-9a-f]{40}|\bsb_secret_[A-Za-z0-9_-]{20,}", "Supabase: access tokens, secret keys"
    ),
    TokenFormat("Databricks", r"\bdapi[0-9a-f]{32}(?:-[0-9]+)?", "Databricks: personal access tokens"),
    TokenFormat("Aiven", r"\bAVNS_[A-Za-z0-9_-]{19}", "Aiven: service passwords; GitHub secret scanning"),
    # Code, packages, builds
    TokenFormat("GitHub", r"gh[pousr]_[A-Za-z0-9_]{30,}|github_pat_[A-Za-z0-9_]{22,}", "GitHub: about authentication"),
    TokenFormat(
        "GitLab",
        r"\bgl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|wt|soat|ffct)-[A-Za-z0-9_.-]{20,}|\bGR1348941[A-Za-z0-9_-]{20,}",
        "GitLab: token overview, prefixes",
    ),
    TokenFormat(
        "Atlassian",
        r"\bAT[AC]TT3[A-Za-z0-9_=-]{50,}|\bATBB[A-Za-z0-9]{32}",
        "Atlassian: API tokens; Bitbucket: app passwords",
    ),
    TokenFormat("Sourcegraph", r"\bsgp_(?:(?:[0-9a-fA-F]{16}|local)_)?[0-9a-fA-F]{40}", "Sourcegraph: access tokens"),
    TokenFormat("npm", r"\bnpm_[A-Za-z0-9]{36}", "npm: about access tokens"),
    TokenFormat("PyPI", r"\bpypi-AgE[A-Za-z0-9_-]{40,}", "PyPI: API tokens are macaroons of version 2"),
    TokenFormat("RubyGems", r"\brubygems_[0-9a-f]{48}", "RubyGems: API keys"),
    TokenFormat("NuGet", r"\boy2[a-z0-9]{43}\b", "NuGet: API keys"),
    TokenFormat("crates.io", r"\bcio[A-Za-z0-9]{32}\b", "crates.io: API tokens; GitHub secret scanning"),
    TokenFormat("Clojars", r"(?i:\bCLOJARS_[a-z0-9]{60})", "Clojars: deploy tokens; " + _RULES),
    TokenFormat("JFrog", r"\bAKCp[A-Za-z0-9]{60,}|\bcmVmdGtu[A-Za-z0-9]{50,}", "JFrog: API keys, reference tokens"),
    TokenFormat("Docker Hub", r"\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}", "Docker Hub: access tokens"),
    TokenFormat("Buildkite", r"\bbkua_[0-9a-f]{40}", "Buildkite: API access tokens"),
    TokenFormat("CircleCI", r"\bCCIPAT_[A-Za-z0-9_]{22,}", "CircleCI: personal API tokens"),
    TokenFormat("SonarQube", r"\bsq[upa]_[0-9a-f]{40}", "SonarQube: tokens"),
    TokenFormat(
        "Harness", r"\b[ps]at\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}", "Harness: API keys; " + _RULES
    ),
    TokenFormat("Octopus Deploy", r"\bAPI-[A-Z0-9]{25,32}\b", "Octopus Deploy: API keys; " + _RULES),
    TokenFormat("Infracost", r"\bico-[A-Za-z0-9]{32}\b", "Infracost: API keys; " + _RULES),
    TokenFormat("Prefect", r"\bpn[ub]_[A-Za-z0-9]{36}", "Prefect: API keys"),
    TokenFormat("Postman", r"\bPMAK-[0-9a-f]{24}-[0-9a-f]{34}", "Postman: API keys"),
    TokenFormat("ReadMe", r"\brdme_[a-z0-9]{60,}", "ReadMe: API keys; " + _RULES),
    TokenFormat("Vercel", r"\bvercel_blob_rw_[A-Za-z0-9_]{30,}", "Vercel: Blob read-write tokens"),
    TokenFormat("Netlify", r"\bnfp_[A-Za-z0-9]{36}", "Netlify: personal access tokens"),
    TokenFormat("Deno Deploy", r"\bdd[pow]_[A-Za-z0-9]{36}", "Deno Deploy: access tokens; GitHub secret scanning"),
    TokenFormat("SettleMint", r"\bsm_[aps]at_[A-Za-z0-9]{16}", "SettleMint: access tokens; " + _RULES),
    # Secrets, keys, networks
    TokenFormat("HashiCorp Vault", r"\bhv[sbr]\.[A-Za-z0-9_-]{24,}", "HashiCorp Vault: tokens since 1.10"),
    TokenFormat("Pulumi", r"\bpul-[0-9a-f]{40}", "Pulumi: access tokens"),
    TokenFormat("Doppler", r"\bdp\.(?:pt|st|sa|ct|scim|audit)\.[A-Za-z0-9_.-]{40,}", "Doppler: token formats"),
    TokenFormat(
        "1Password",
        r"\bops_eyJ[A-Za-z0-9_=+/-]{60,}|\bA3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}\b",
        "1Password: service account tokens, secret keys; " + _RULES,
    ),
    TokenFormat("age", r"\bAGE-SECRET-KEY-1[0-9A-Z]{58}", "age: native X25519 identities"),
    TokenFormat("Tailscale", r"\btskey-[a-z]+-[A-Za-z0-9-]{20,}", "Tailscale: keys"),
    TokenFormat("Defined Networking", r"\bdnkey-[A-Za-z0-9=_-]{26}-[A-Za-z0-9=_-]{52}", _RULES),
    TokenFormat(
        "Authress",
        r"\b(?:sc|ext|scauth|authress)_[A-Za-z0-9]{5,30}\.[A-Za-z0-9]{4,6}\.acc[_-][A-Za-z0-9-]{10,32}\.[A-Za-z0-9+/_=-]{30,}",
        "Authress: service client access keys; " + _RULES,
    ),
    TokenFormat("Adobe", r"\bp8e-[A-Za-z0-9]{32}\b", "Adobe: client secrets; " + _RULES),
    TokenFormat("42 Intra", r"\bs-s4t2(?:ud|af)-[0-9a-f]{64}", _RULES),
    # Watching
    TokenFormat(
        "Grafana", r"\bgl(?:sa|c)_[A-Za-z0-9+/=_]{32,}|\beyJrIjoi[A-Za-z0-9+/]{60,}={0,3}", "Grafana: tokens, API keys"
    ),
    TokenFormat(
        "New Relic", r"\bNRAK-[A-Z0-9]{27}|\bNRJS-[0-9a-f]{19}|\bNRII-[A-Za-z0-9_-]{32}", "New Relic: API keys"
    ),
    TokenFormat("Sentry", r"\bsntry[su]_[A-Za-z0-9+/=_-]{40,}", "Sentry: auth tokens"),
    TokenFormat("Dynatrace", r"\bdt0[a-z][0-9]{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}", "Dynatrace: access tokens"),
    TokenFormat("PostHog", r"\bph[xc]_[A-Za-z0-9]{40,}", "PostHog: API keys"),
    # Models
    TokenFormat("Groq, Replicate", r"\b(?:gsk|r8)_[A-Za-z0-9]{37,}", "Groq and Replicate: API keys"),
    TokenFormat("xAI", r"\bxai-[A-Za-z0-9]{60,}", "xAI: API keys"),
    TokenFormat("Perplexity", r"\bpplx-[A-Za-z0-9]{40,}", "Perplexity: API keys"),
    TokenFormat("LangSmith", r"\blsv2_[a-z]{2}_[0-9a-f]{32}_[0-9a-f]{10}", "LangSmith: API keys"),
    TokenFormat("Cerebras", r"\bcsk-[a-z0-9]{40,}", "Cerebras: API keys"),
    TokenFormat("NVIDIA", r"\bnvapi-[A-Za-z0-9_-]{60,}", "NVIDIA NGC: API keys"),
    TokenFormat("Tavily", r"\btvly-(?:dev-|prod-)?[A-Za-z0-9]{32}", "Tavily: API keys"),
    TokenFormat("Pinecone", r"\bpcsk_[A-Za-z0-9]{4,8}_[A-Za-z0-9]{50,}", "Pinecone: API keys"),
    TokenFormat("Together", r"\btgp_v1_[A-Za-z0-9_-]{40,}", "Together: API keys"),
    TokenFormat("ElevenLabs", r"\bsk_[0-9a-f]{48}", "ElevenLabs: API keys"),
    TokenFormat("E2B", r"\be2b_[0-9a-f]{40}", "E2B: API keys"),
    TokenFormat("Firecrawl", r"\bfc-[0-9a-f]{32}", "Firecrawl: API keys"),
    TokenFormat("Jina", r"\bjina_[0-9a-f]{32}[A-Za-z0-9_-]{20,}", "Jina: API keys"),
    TokenFormat("LlamaCloud", r"\bllx-[A-Za-z0-9]{40,}", "LlamaCloud: API keys"),
    TokenFormat("Weights & Biases", r"\bwandb_v1_[A-Za-z0-9_]{40,}", "Weights & Biases: API keys"),
    TokenFormat("Anyscale", r"\besecret_[A-Za-z0-9]{20,}", "Anyscale: API keys"),
    TokenFormat("Fireworks", r"\bfw_[A-Za-z0-9]{22,26}\b", "Fireworks AI: API keys; GitHub secret scanning"),
    TokenFormat("Hugging Face", r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}", "Hugging Face: user access tokens"),
    # Chat and mail
    TokenFormat(
        "Slack", r"\bxox[a-z](?:\.xox[a-z])?-[A-Za-z0-9%-]{10,}|\bxapp-[0-9]-[A-Za-z0-9-]{10,}", "Slack: token types"
    ),
    TokenFormat(
        "Slack webhooks",
        r"hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/([A-Za-z0-9+/_-]{20,})",
        "Slack: incoming webhooks; the path is the credential",
    ),
    TokenFormat(
        "Discord webhooks", r"discord(?:app)?\.com/api/webhooks/[0-9]{15,22}/([A-Za-z0-9_-]{40,})", "Discord: webhooks"
    ),
    TokenFormat(
        "Microsoft Teams webhooks",
        r"\.webhook\.office\.com/webhookb2/([A-Za-z0-9@/-]{40,})",
        "Microsoft Teams: incoming webhooks",
    ),
    TokenFormat("Telegram URLs", r"api\.telegram\.org/bot([0-9]{6,12}:[A-Za-z0-9_-]{30,})", "Telegram: bot API"),
    TokenFormat("Twilio", r"\bSK[0-9a-f]{32}\b", "Twilio: API key SIDs; an auth token is found by its name"),
    TokenFormat("SendGrid", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}", "SendGrid: API keys"),
    TokenFormat("Mailgun", r"\bkey-[0-9a-f]{32}\b", "Mailgun: API keys"),
    TokenFormat("MailerSend", r"\bmlsn\.[0-9a-f]{64}", "MailerSend: API tokens; GitHub secret scanning"),
    TokenFormat(
        "Brevo", r"\bx(?:key|smtp)sib-[0-9a-f]{64}(?:-[A-Za-z0-9]{16})?", "Brevo: API and SMTP keys; " + _RULES
    ),
    TokenFormat("Resend", r"\bre_[A-Za-z0-9]{8}_[A-Za-z0-9]{24}", "Resend: API keys"),
    TokenFormat("Facebook", r"\bEAA[MC][A-Za-z0-9]{100,}", "Meta: page and user access tokens; " + _RULES),
    # Money
    TokenFormat("Stripe", r"\b(?:[sr]k_(?:live|test|prod)|whsec)_[A-Za-z0-9+/=]{10,}", "Stripe: API keys"),
    TokenFormat("Square", r"\bsq0(?:atp|csp)-[A-Za-z0-9_-]{22,}|\bEAAA[A-Za-z0-9_-]{56,60}\b", "Square: access tokens"),
    TokenFormat(
        "Braintree", r"\baccess_token\$(?:production|sandbox)\$[0-9a-z]{16}\$[0-9a-f]{32}", "Braintree: access tokens"
    ),
    TokenFormat("Plaid", r"\baccess-(?:production|development|sandbox)-[0-9a-f-]{36}", "Plaid: access tokens"),
    TokenFormat("EasyPost", r"\bEZ[AT]K[A-Za-z0-9]{50,}", "EasyPost: API keys"),
    TokenFormat("Flutterwave", r"\bFLWSECK(?:_TEST)?-[0-9a-zA-Z]{12,}", "Flutterwave: secret keys"),
    TokenFormat("Duffel", r"\bduffel_(?:test|live)_[A-Za-z0-9_=-]{40,}", "Duffel: access tokens; " + _RULES),
    TokenFormat("Shippo", r"\bshippo_(?:live|test)_[0-9a-fA-F]{40}", "Shippo: API tokens; " + _RULES),
    TokenFormat("Shopify", r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}", "Shopify: access tokens, shared secrets"),
    TokenFormat(
        "Paddle", r"\bpdl_(?:live|sdbx)_apikey_[a-z0-9]{26}_[A-Za-z0-9]{22}_[A-Za-z0-9]{3}", "Paddle: API keys"
    ),
    # Work
    TokenFormat("Linear", r"\blin_(?:api|oauth)_[A-Za-z0-9]{32,}", "Linear: API keys, OAuth tokens"),
    TokenFormat(
        "Notion", r"\bntn_[A-Za-z0-9]{40,}|\bsecret_[A-Za-z0-9]{43}\b", "Notion: integration tokens, both forms"
    ),
    TokenFormat("Figma", r"\bfigd_[A-Za-z0-9_-]{40,}", "Figma: personal access tokens"),
    TokenFormat("Airtable", r"\bpat[A-Za-z0-9]{14}\.[0-9a-f]{64}", "Airtable: personal access tokens"),
    TokenFormat("HubSpot", r"\bpat-(?:na|eu)[0-9]-[0-9a-f-]{36}", "HubSpot: private app tokens"),
    TokenFormat("Typeform", r"\btfp_[A-Za-z0-9_.=-]{44,}", "Typeform: personal access tokens; " + _RULES),
    TokenFormat("Mapbox", r"\bsk\.eyJ[A-Za-z0-9_-]{20,}", "Mapbox: secret access tokens"),
    TokenFormat("Contentful", r"\bCFPAT-[A-Za-z0-9_-]{40,}", "Contentful: personal access tokens"),
    TokenFormat("Dropbox", r"\bsl\.[A-Za-z0-9_-]{100,}", "Dropbox: short-lived access tokens"),
    TokenFormat("Frame.io", r"\bfio-u-[A-Za-z0-9_=-]{60,}", "Frame.io: API tokens; " + _RULES),
    TokenFormat("Apify", r"\bapify_api_[A-Za-z0-9]{36}", "Apify: API tokens; GitHub secret scanning"),
)

_OF_A_KNOWN_KIND: Final = re.compile(
    rb"sk-(?:(?:ant|proj|svcacct|admin|or|lf|None|helicone)-.{16,}|[A-Za-z0-9]{20,}.*|.*T3BlbkFJ.*)"
)
_MIXED: Final = re.compile(rb"(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z]).{6,}")


def _is_sk_key(value: bytes) -> bool:
    """Return True for a known kind of key, or one with a part that no name has. `sk-learn-pipeline-V2` has none."""
    return _OF_A_KNOWN_KIND.fullmatch(value) is not None or any(map(_MIXED.fullmatch, re.split(rb"[_-]", value)))


SERVICE_TOKENS: Final[tuple[SecretPattern, ...]] = (
    # First what takes a closer look, or begins with any letter: without a sign such a row slows down every look.
    SecretPattern(
        "aws_pair",
        r"""\b(?:AKIA|ASIA)[A-Z0-9]{16}["']?[\s,;:|/]{1,3}["']?([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+]|\z)"""
        r"""|(?i:secret[ _-]?(?:access[ _-]?)?key)(?:[ \t]+|\n)([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+]|\z)""",
        "AWS IAM: access keys; a secret key has no form, but stands behind its id or its name",
    ),
    SecretPattern(
        "azure_client_secret",
        r"\b[A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}",
        "Microsoft Purview: Entra client secrets; " + _RULES,
        sign="[0-9]Q~",
    ),
    SecretPattern(
        "azure_key",
        r"[A-Za-z0-9+/]{32,}(?:\+(?:ASt|AEh|ASb|ARm)|ACDb|AIoT)[A-Za-z0-9+/]{5}[AQgw]={1,2}",
        "Microsoft Purview: Azure Storage, Event Hubs, Service Bus, Relay, Cosmos DB and IoT keys",
        sign="[+](?:ASt|AEh|ASb|ARm)[A-Za-z0-9+/]{5}[AQgw]=|(?:ACDb|AIoT)[A-Za-z0-9+/]{5}[AQgw]=",
    ),
    SecretPattern(
        "telegram",
        r"\b[0-9]{6,12}:AA[A-Za-z0-9_-]{30,}",
        "Telegram: bot API",
        sign="[0-9]:AA[A-Za-z0-9_-]{30}",
    ),
    SecretPattern(
        "azure_devops",
        r"\b[A-Za-z0-9]{32,}AZDO[A-Za-z0-9]{4}\b",
        "Microsoft Purview: DevOps access tokens",
        sign="AZDO",
    ),
    SecretPattern("mailchimp", r"\b[0-9a-f]{32}-us[0-9]{1,2}\b", "Mailchimp: API keys; " + _RULES, sign="-us[0-9]"),
    SecretPattern("maxmind", r"\b[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk\b", "MaxMind: license keys", sign="_mmk"),
    SecretPattern(
        "hcp_terraform",
        r"\b[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,}",
        "HCP Terraform: API tokens",
        sign=r"[.]atlasv1[.]",
    ),
    SecretPattern(
        "facebook_app",
        r"\b[0-9]{15,16}(?:\||%7C)([A-Za-z0-9_-]{27,40})\b",
        "Meta: app access tokens, `app id|secret`; " + _RULES,
        has_a_digit,
        sign=r"[0-9]{15}(?:\||%7C)",
    ),
    SecretPattern("old_vault", r"\bs\.[A-Za-z0-9]{24}\b", "HashiCorp Vault: service tokens before 1.10", has_a_digit),
    SecretPattern(
        "sk_key",
        r"\bsk-[A-Za-z0-9_-]{20,}",
        "OpenAI, Anthropic, OpenRouter, Langfuse, LiteLLM: API keys; their letters set sk-learn-… apart",
        _is_sk_key,
    ),
    SecretPattern("service_token", "|".join(each.regex for each in FORMATS), "each row of `FORMATS` has its own"),
)
