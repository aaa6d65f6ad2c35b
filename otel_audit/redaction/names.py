"""Decide by the name of a key whether its value is a secret."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

__all__ = ["SecretNames", "is_secret_name"]

# One word makes a name secret wherever it stands, unless the name ends in a word of `_ABOUT_A_SECRET`: `token_count`
# and `password_policy` say something about a secret, they do not hold one.
_WORDS: Final = """
    accesskey accesstoken apikey apikeys authorization bearer clientsecret cookie cookies credential credentials creds
    csrf cvc cvv jsessionid jwt otp passcode passkey passphrase passwd password passwords phpsessid privatekey privkey
    psk pw pwd refreshtoken secret secretkey secrets session sessionid token totp xsrf
"""
# Secret as the whole name, or as that of a header, form or query: in longer names they mean something else.
_SHORT: Final = "auth clave parola pass pin sid"
_IN_FRONT_OF_SHORT: Final = "body cookie data env field form header params query x"
# "Password" in the languages of most services, without accents.
_TRANSLATED: Final = """
    adgangskode contrasena contrasenya haslo heslo jelszo kennwort losenord lozinka mdp motdepasse palavrapasse passord
    passwort salasana senha sifre wachtwoord
"""
# "Password" and "token" in scripts that have no words of ours: Russian, Chinese, Japanese, Korean, Hebrew, Arabic.
_IN_OTHER_SCRIPTS: Final = (
    "\u043f\u0430\u0440\u043e\u043b \u0442\u043e\u043a\u0435\u043d \u5bc6\u7801 \u5bc6\u78bc \u53e3\u4ee4 \u4ee4\u724c "
    "\u30d1\u30b9\u30ef\u30fc\u30c9 \u6697\u8a3c\u756a\u53f7 \u30c8\u30fc\u30af\u30f3 "
    "\ube44\ubc00\ubc88\ud638 \uc554\ud638 \ud1a0\ud070 \u05e1\u05d9\u05e1\u05de \u0627\u0644\u0645\u0631\u0648\u0631"
)
# A word may be written together with what is before it: `userpassword`, `authtoken`.
_WORD_ENDS: Final = ("apikey", "passwd", "password", "secret", "secretkey", "token")
_PAIRS: Final = """
    access_key access_signature access_tokens account_key amz_signature api_key api_keys app_key application_key
    auth_code auth_key auth_tokens authorization_code backup_codes bearer_tokens card_number client_assertion
    code_verifier conn_str connect_sid connection_string credit_card db_pass database_pass deploy_key device_code
    encryption_key functions_key goog_signature hmac_key ldap_pass license_key mail_pass master_key mfa_code mfa_codes
    mysql_pass pass_phrase pass_word pin_code postgres_pass private_key private_keys recovery_code recovery_codes
    redis_pass refresh_tokens root_pass secret_key security_answer seed_phrase shared_key signing_key smtp_pass ssh_key
    storage_key subscription_key user_pass verification_code x_auth
"""
_ABOUT_A_SECRET: Final = """
    affinity age alg algorithm arn at attempts aud audience bucket budget changed consent count counts created decision
    duration enabled endpoint error exists expired expires expiry fingerprint flow format found invalid iss issued
    issuer kid kind length lifetime limit limits manager max method min missing mode name namespace outcome path policy
    present provider reason ref region renewed requested required reset result revoked rotated scheme scope scopes
    server set source start state status store strength sub supported timeout total ttl type types uri url usage used
    valid verified version
"""
# An auditor asks which key or token it was. But the id of a session is a secret, and so is Vault's `secret_id`.
_ABOUT_A_SECRET_IN_TWO_WORDS: Final = """
    credential_id expires_in key_id token_id
"""
_SECRET_WORDS: Final = frozenset(_WORDS.split())
_SECRET_PAIRS: Final = frozenset(tuple(pair.split("_")) for pair in _PAIRS.split())
_SHORT_WORDS: Final = frozenset(_SHORT.split())
_PLACES: Final = frozenset(_IN_FRONT_OF_SHORT.split())
_TRANSLATIONS: Final = frozenset(_TRANSLATED.split())
_FOREIGN_WORDS: Final = tuple(unicodedata.normalize("NFKD", _IN_OTHER_SCRIPTS).split())
_HARMLESS_ENDS: Final = frozenset(_ABOUT_A_SECRET.split())
_HARMLESS_END_PAIRS: Final = frozenset(tuple(pair.split("_")) for pair in _ABOUT_A_SECRET_IN_TWO_WORDS.split())

_LOWER_UPPER = re.compile("([a-z0-9])([A-Z])")
_ACRONYM_WORD = re.compile("([A-Z])([A-Z][a-z])")
_NOT_A_WORD = re.compile("[^a-z]+")
_CACHED_NAME_CHARS: Final = 128
_END_CHARS: Final = 256


class SecretNames:
    """Names of keys whose values are secrets: the words above, with the names that a user adds or removes.

    A name of `own` counts if its words stand together anywhere in a key, a name of `harmless` only as the whole key.
    """

    __slots__ = ("_cached", "_harmless", "_own")

    def __init__(self, own: Iterable[str] = (), harmless: Iterable[str] = ()) -> None:
        self._own = frozenset(map(_key_words, own))
        self._harmless = frozenset(map(_key_words, harmless))
        self._cached = functools.lru_cache(maxsize=2048)(self._is_secret)

    def is_secret(self, name: str) -> bool:
        """Return True if the name of this key makes its value a secret: `api_key`, `X-Auth-Token`, `clientSecret`.

        Whole words are compared, so `input_tokens`, `token_count`, `author` and `tokenizer` do not count.
        """
        # Only short names are cached, so that a hostile caller cannot fill the cache.
        return self._cached(name) if len(name) <= _CACHED_NAME_CHARS else self._is_secret(_ends_of(name))

    def _is_secret(self, name: str) -> bool:
        if self._own or self._harmless:
            words = _key_words(name)
            if words in self._harmless:
                return False
            if any(_stands_in(own, words) for own in self._own):
                return True
        return _is_secret_by_words(_words(name)) or _is_translated(name)


def _ends_of(name: str) -> str:
    """Return the part that is examined of a name that is longer than any in a program."""
    return name if len(name) <= 2 * _END_CHARS else f"{name[:_END_CHARS]} {name[-_END_CHARS:]}"


def _is_secret_by_words(words: list[str]) -> bool:
    if not words or words[-1] in _HARMLESS_ENDS or tuple(words[-2:]) in _HARMLESS_END_PAIRS:
        return False
    if any(word in _SECRET_WORDS or word.endswith(_WORD_ENDS) for word in words):
        return True
    if words[-1] in _SHORT_WORDS and (len(words) == 1 or words[-2] in _PLACES):
        return True
    return not _SECRET_PAIRS.isdisjoint(itertools.pairwise(words))


def _is_translated(name: str) -> bool:
    plain = unicodedata.normalize("NFKD", name).encode("utf-8", "replace").decode()
    if not plain.isascii() and any(word in plain.casefold() for word in _FOREIGN_WORDS):
        return True
    words = _words("".join(char for char in plain if not unicodedata.combining(char)).replace("\u0142", "l"))
    if words and words[-1] in _HARMLESS_ENDS:
        return False
    return not _TRANSLATIONS.isdisjoint(words) or "".join(words) in _TRANSLATIONS


def _key_words(name: str) -> tuple[str, ...]:
    """Return the words of a name, or the whole name if it is in another script."""
    return tuple(_words(name)) or (unicodedata.normalize("NFKC", name).casefold(),)


def _stands_in(own: tuple[str, ...], words: tuple[str, ...]) -> bool:
    return any(words[at : at + len(own)] == own for at in range(len(words) - len(own) + 1))


def _words(name: str) -> list[str]:
    """Return the words of a name: `X-ApiKey2` -> x, api, key."""
    plain = unicodedata.normalize("NFKC", name).encode("utf-8", "replace").decode()
    spaced = _ACRONYM_WORD.sub(r"\1 \2", _LOWER_UPPER.sub(r"\1 \2", plain))
    return [word for word in _NOT_A_WORD.split(spaced.lower()) if word]


is_secret_name = SecretNames().is_secret
