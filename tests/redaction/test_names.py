"""A name says whether its value is a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.redaction.caps import Caps
from otel_audit.redaction.names import is_secret_name
from otel_audit.redaction.patterns import REDACTED
from otel_audit.redaction.redactor import Redactor
from tests.examples import examples

SECRET_NAMES = (
    "password passwd db_password password2 PASSWORD DBPassword secret client_secret clientSecret token access_token"
    " accessToken refresh-token auth.token api_key apikey apiKey APIKey X-Api-Key x-amz-security-token authorization"
    " Authorization Proxy-Authorization http.request.header.authorization cookie set-cookie Set-Cookie private_key"
    " privateKey session session_id sessionid session.id ｐassword secret_access_key credentials csrf-token"
    " Passwort contrase\u00f1a Contrasena mot_de_passe motDePasse user_mdp senha \u041f\u0430\u0440\u043e\u043b\u044c"
    " \u5bc6\u7801 \u7528\u6237\u5bc6\u7801 \u30d1\u30b9\u30ef\u30fc\u30c9 \ube44\ubc00\ubc88\ud638 has\u0142o"
    " \u015fifre pw pass auth sid psk pin X-Auth wifi_psk form.pin http.request.header.sid"
    " userpassword authtoken appsecret db_pass creds mfa_code Ocp-Apim-Subscription-Key X-Amz-Signature secret_id"
)
HARMLESS_NAMES = (
    "input_tokens output_tokens max_tokens token_count tokenCount token_type author authority authors tokenizer"
    " secretary secret_name public_key partition_key primary_key key auth_type password_policy session_duration"
    " cookie_consent_version tokenization bearing keyboard password_reset password_changed_at token_expires_at"
    " pass_count auth.method map_pin sid_type boarding_pass passport auth_provider compass passwort_policy"
    " tokenExpiresIn api_key_id token_id credentialId authorization_server session_region jwt_issuer secret_arn"
)


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_names_that_say_secret(name: str) -> None:
    assert is_secret_name(name)
    assert Redactor().clean({"event_type": "a", "attributes": {name: "x"}})["attributes"] == {name: REDACTED}
    assert not Redactor().attributes_are_clean({name: "x"})


@pytest.mark.parametrize("name", HARMLESS_NAMES.split())
def test_names_that_only_look_like_it(name: str) -> None:
    event = {"event_type": "a", "attributes": {name: 5}}

    assert not is_secret_name(name)
    assert Redactor().clean(event) == event
    assert Redactor().attributes_are_clean({name: 5})


@given(st.integers(1, 40))
@examples(40)
def test_a_name_that_a_cut_makes_a_secret_does_not_change_on_the_next_look(room: int) -> None:
    redactor = Redactor(caps=Caps(key_chars=40))
    event = {"event_type": "a", "attributes": {f"{'n' * room}_token_{'x' * 40}_count": 5}}

    once = redactor.clean(event)

    assert redactor.clean(once) == once


def test_a_yes_or_no_is_not_a_secret() -> None:
    event = {"event_type": "a", "attributes": {"password": True, "token": "", "session": REDACTED}}

    assert Redactor().clean(event) == event
