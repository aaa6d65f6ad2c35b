"""What the tokens and keys of services look like: they say whose they are by how they begin."""

from __future__ import annotations

import re
from typing import Final

from otel_audit.redaction.secret_pattern import SecretPattern

__all__ = ["SERVICE_TOKENS"]

_KEY_TEXT: Final = "[A-Za-z0-9_-]"

_OF_A_KNOWN_KIND: Final = re.compile(
    rb"sk-(?:(?:ant|proj|svcacct|admin|or|lf|None|helicone)-.{16,}|[A-Za-z0-9]{20,}.*|.*T3BlbkFJ.*)"
)
_MIXED: Final = re.compile(rb"(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z]).{6,}")


def _is_sk_key(value: bytes) -> bool:
    """Whether it is of a kind that is known, or has a part that no name has: sk-learn-pipeline-V2 has none."""
    return _OF_A_KNOWN_KIND.fullmatch(value) is not None or any(map(_MIXED.fullmatch, re.split(rb"[_-]", value)))


SERVICE_TOKENS: Final[tuple[SecretPattern, ...]] = (
    SecretPattern(
        "aws_pair",
        r"""\b(?:AKIA|ASIA)[A-Z0-9]{16}["']?[\s,;:|/]{1,3}["']?([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+]|\z)"""
        r"""|(?i:secret[ _-]?(?:access[ _-]?)?key)(?:[ \t]+|\n)([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+]|\z)""",
        "AWS IAM: access keys; a secret key has no form, but stands behind its id or its name",
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
        r"\bgl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|wt|soat|ffct)-[A-Za-z0-9_.-]{20,}"
        r"|\bGR1348941[A-Za-z0-9_-]{20,}",
        "GitLab: token overview, prefixes",
    ),
    SecretPattern(
        "slack",
        r"\bxox[a-z](?:\.xox[a-z])?-[A-Za-z0-9%-]{10,}|\bxapp-[0-9]-[A-Za-z0-9-]{10,}",
        "Slack: token types",
    ),
    SecretPattern(
        "slack_webhook",
        r"hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/([A-Za-z0-9+/_-]{20,})",
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
        "telegram",
        r"\b[0-9]{6,12}:AA[A-Za-z0-9_-]{30,}",
        "Telegram: bot API",
        sign="[0-9]:AA[A-Za-z0-9_-]{30}",
    ),
    SecretPattern(
        "google_api_key", r"\bAIza[A-Za-z0-9_-]{35}|\bAQ\.A[A-Za-z0-9_-]{40,}", "Google Cloud: API keys, of both forms"
    ),
    SecretPattern(
        "google_oauth",
        r"\bya29\.[A-Za-z0-9_.-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{24,}|\b1//0[A-Za-z0-9_-]{30,}|\bGOOG1E[A-Z0-9]{50,}",
        "Google: OAuth 2.0 access tokens, client secrets, refresh tokens; Cloud Storage: HMAC keys",
    ),
    SecretPattern(
        "azure_sas", r"(?i)\bsig(?:=|%3D)([A-Za-z0-9%+/=_-]{20,})", "Azure Storage: service SAS, field `sig`"
    ),
    SecretPattern(
        "azure_client_secret",
        r"\b[A-Za-z0-9_~.-]{3}[78]Q~[A-Za-z0-9_~.-]{31,34}",
        "Microsoft Purview: Entra secret",
        sign="[78]Q~",
    ),
    SecretPattern(
        "azure_key",
        r"[A-Za-z0-9+/]{32,}(?:\+(?:ASt|AEh|ASb|ARm)|ACDb|AIoT)[A-Za-z0-9+/]{5}[AQgw]={1,2}"
        r"|\b[A-Za-z0-9]{32,}AZDO[A-Za-z0-9]{4}\b",
        "Microsoft Purview: Azure Storage, Event Hubs, Service Bus, Relay, Cosmos DB, IoT keys; DevOps access tokens",
        sign="[+](?:ASt|AEh|ASb|ARm)[A-Za-z0-9+/]{5}[AQgw]=|(?:ACDb|AIoT)[A-Za-z0-9+/]{5}[AQgw]=|AZDO",
    ),
    SecretPattern("stripe", r"\b(?:[sr]k_(?:live|test)|whsec)_[A-Za-z0-9+/=]{10,}", "Stripe: API keys"),
    SecretPattern(
        "sk_key",
        rf"\bsk-{_KEY_TEXT}{{20,}}",
        "OpenAI, Anthropic, OpenRouter, Langfuse, LiteLLM: API keys; their letters set sk-learn-… apart",
        _is_sk_key,
    ),
    SecretPattern(
        "model_service",
        r"\b(?:gsk|r8)_[A-Za-z0-9]{37,}|\bxai-[A-Za-z0-9]{60,}|\bpplx-[A-Za-z0-9]{40,}"
        r"|\blsv2_[a-z]{2}_[0-9a-f]{32}_[0-9a-f]{10}|\bcsk-[a-z0-9]{40,}|\bnvapi-[A-Za-z0-9_-]{60,}"
        r"|\btvly-(?:dev-|prod-)?[A-Za-z0-9]{32}|\bpcsk_[A-Za-z0-9]{4,8}_[A-Za-z0-9]{50,}|\btgp_v1_[A-Za-z0-9_-]{40,}"
        r"|\bsk_[0-9a-f]{48}|\be2b_[0-9a-f]{40}|\bfc-[0-9a-f]{32}|\bjina_[0-9a-f]{32}[A-Za-z0-9_-]{20,}"
        r"|\bllx-[A-Za-z0-9]{40,}|\bwandb_v1_[A-Za-z0-9_]{40,}|\besecret_[A-Za-z0-9]{20,}",
        "Groq, Replicate, xAI, Perplexity, LangSmith, Cerebras, NVIDIA, Tavily, Pinecone, Together, ElevenLabs, E2B, "
        "Firecrawl, Jina, LlamaCloud, Weights & Biases, Anyscale: API keys",
    ),
    SecretPattern(
        "developer_service",
        r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|\blin_(?:api|oauth)_[A-Za-z0-9]{32,}|\bPMAK-[0-9a-f]{24}-[0-9a-f]{34}"
        r"|\bNRAK-[A-Z0-9]{27}|\bsntry[su]_[A-Za-z0-9+/=_-]{40,}|\bpul-[0-9a-f]{40}|\bsbp_[0-9a-f]{40}"
        r"|\bsb_secret_[A-Za-z0-9_-]{20,}|\brubygems_[0-9a-f]{48}|\bpscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{32,}"
        r"|\bAT[AC]TT3[A-Za-z0-9_=-]{50,}|\bATBB[A-Za-z0-9]{32}|\bdp\.(?:pt|st|sa|ct|scim|audit)\.[A-Za-z0-9_.-]{40,}"
        r"|\.atlasv1\.[A-Za-z0-9_=-]{60,}|\bntn_[A-Za-z0-9]{40,}|\bsecret_[A-Za-z0-9]{43}\b"
        r"|\bfigd_[A-Za-z0-9_-]{40,}|\bpat[A-Za-z0-9]{14}\.[0-9a-f]{64}|\bHRKU-[A-Za-z0-9_-]{40,}"
        r"|\bpat-(?:na|eu)[0-9]-[0-9a-f-]{36}|\bbkua_[0-9a-f]{40}|\bCCIPAT_[A-Za-z0-9_]{22,}|\bnfp_[A-Za-z0-9]{36}"
        r"|\bvercel_blob_rw_[A-Za-z0-9_]{30,}|\b(?:fm[12]|fo1)_[A-Za-z0-9+/=_-]{40,}|\btskey-[a-z]+-[A-Za-z0-9-]{20,}"
        r"|\bph[xc]_[A-Za-z0-9]{40,}|\bsq[upa]_[0-9a-f]{40}|\bdt0[a-z][0-9]{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}"
        r"|\bsk\.eyJ[A-Za-z0-9_-]{20,}|\bops_eyJ[A-Za-z0-9_=-]{60,}|\boy2[a-z0-9]{43}\b|\bCFPAT-[A-Za-z0-9_-]{40,}"
        r"|\bpn[ub]_[A-Za-z0-9]{36}|\bxkeysib-[0-9a-f]{64}|\bsl\.[A-Za-z0-9_-]{100,}"
        r"|\bAKCp[A-Za-z0-9]{60,}|\bcmVmdGtu[A-Za-z0-9]{50,}|\bre_[A-Za-z0-9]{8}_[A-Za-z0-9]{24}",
        "Shopify, Linear, Postman, New Relic, Sentry, Pulumi, Supabase, RubyGems, PlanetScale, Atlassian, Bitbucket, "
        "Doppler, HCP Terraform, Notion, Figma, Airtable, Heroku, HubSpot, Buildkite, CircleCI, Netlify, Vercel, "
        "Fly.io, Tailscale, PostHog, SonarQube, Dynatrace, Mapbox, 1Password, NuGet, Contentful, Prefect, Brevo, "
        "Dropbox, JFrog, Resend: API tokens",
    ),
    SecretPattern(
        "payment_service",
        r"\bsq0(?:atp|csp)-[A-Za-z0-9_-]{22,}|\baccess_token\$(?:production|sandbox)\$[0-9a-z]{16}\$[0-9a-f]{32}"
        r"|\baccess-(?:production|development|sandbox)-[0-9a-f-]{36}|\bEZ[AT]K[A-Za-z0-9]{50,}"
        r"|\bFLWSECK(?:_TEST)?-[0-9a-zA-Z]{12,}",
        "Square, Braintree, Plaid, EasyPost, Flutterwave: access tokens and keys",
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
)
