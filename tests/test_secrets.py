"""Credentials and personal data: found where they stand, replaced, and never printed.

Every planted secret is put together at run time, so that none stands in the repository.
"""

import base64
import hashlib
import json
import string

import pytest
from forge.screening import secrets
from forge.screening.secrets import Span

ALNUM = string.ascii_letters + string.digits


def random_text(length: int, alphabet: str = ALNUM, seed: str = "a") -> str:
    """The same characters for the same arguments, as a generator of tokens would write them."""
    digits = "".join(hashlib.sha512(f"{seed}{number}".encode()).hexdigest() for number in range(length // 30 + 1))
    return "".join(alphabet[int(digits[2 * n : 2 * n + 2], 16) % len(alphabet)] for n in range(length))


def web_token() -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": "1234", "name": "Maja", "iat": 1516239022}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, random_text(43)])


def pem(kind: str = "RSA ", newline: str = "\n") -> str:
    body = base64.b64encode(random_text(300).encode()).decode()
    lines = [body[place : place + 64] for place in range(0, len(body), 64)]
    return newline.join(["-----BEGIN " + kind + "PRIVATE KEY-----", *lines, "-----END " + kind + "PRIVATE KEY-----"])


UPPER = string.ascii_uppercase + string.digits
TOKENS = {
    "hugging-face-token": ["hf_" + random_text(34), "api_org_" + random_text(34), "hf_" + random_text(37, seed="b")],
    "github-token": [kind + "_" + random_text(36) for kind in ("ghp", "gho", "ghs", "ghu", "ghr")]
    + ["github_pat_" + random_text(22) + "_" + random_text(59)],
    "aws-key-id": ["AKIA" + random_text(16, UPPER), "ASIA" + random_text(16, UPPER)],
    "json-web-token": [web_token()],
    "slack-token": [
        "xoxb-" + random_text(12, string.digits) + "-" + random_text(12, string.digits) + "-" + random_text(24)
    ],
    "slack-webhook": ["T" + random_text(8, UPPER) + "/B" + random_text(8, UPPER) + "/" + random_text(24)],
    "google-api-key": ["AIza" + random_text(35)],
    "google-oauth-token": ["ya29." + random_text(60)],
    "openai-style-key": [
        "sk-" + random_text(48),
        "sk-proj-" + random_text(60),
        "sk-ant-" + "api03-" + random_text(80),
        "sk-or-" + "v1-" + random_text(64, "0123456789abcdef"),
    ],
    "gitlab-token": ["glpat-" + random_text(20)],
    "stripe-key": ["sk_live_" + random_text(24)],
    "sendgrid-key": ["SG." + random_text(22) + "." + random_text(43)],
    "npm-token": ["npm_" + random_text(36)],
    "pypi-token": ["pypi-AgE" + "IcHlwaS5vcmc" + random_text(80)],
    "discord-token": ["M" + random_text(23) + "." + random_text(6) + "." + random_text(27)],
    "telegram-token": [random_text(9, "123456789") + ":" + random_text(35)],
    "mailchimp-key": [random_text(32, "0123456789abcdef") + "-us12"],
    "twilio-key": ["SK" + random_text(32, "0123456789abcdef")],
    "square-secret": ["sq0csp-" + random_text(43)],
    "azure-storage-key": [random_text(86) + "=="],
    "bearer-token": [random_text(30) + "." + random_text(12)],
    "url-password": [random_text(12)],
    "private-key": [pem(), pem(""), pem("OPENSSH "), pem("", "\\n")],
}
# How a value of a rule stands in a text, where it does not stand alone.
AROUND = {
    "slack-webhook": "POST to https://hooks.slack.com/services/{} now",
    "npm-token": "//packages.test/:_authToken={}\n",
    "azure-storage-key": "DefaultEndpointsProtocol=https;AccountKey={};EndpointSuffix=core",
    "bearer-token": "curl -H 'Authorization: Bearer {}' https://host",
    "url-password": "clone https://maja:{}@git.host.de/a.git please",
}
PLANTED = [(rule, value) for rule, values in TOKENS.items() for value in values]
IDS = [f"{rule}-{number}" for number, (rule, _) in enumerate(PLANTED)]


@pytest.mark.parametrize(("rule", "value"), PLANTED, ids=IDS)
@pytest.mark.parametrize(
    "frame", ["{}", "Set the token to {} and go on.", '{{"text": "use {}, then stop"}}', "É: {}\n"]
)
def test_a_planted_secret_is_found_where_it_stands(rule, value, frame):
    text = frame.format(AROUND.get(rule, "{}").format(value))
    start = text.index(value)
    assert secrets.find(text) == [Span(start, start + len(value), rule)]
    clean, counts = secrets.redact(text)
    assert clean == text.replace(value, f"[redacted: {rule}]")
    assert counts == {rule: 1}


def test_the_secret_key_near_an_aws_key_id():
    identity, secret = "AKIA" + random_text(16, UPPER), random_text(38) + "/+"
    text = f"aws_access_key_id = {identity}\naws_secret_access_key = {secret}\n"
    assert secrets.redact(text)[0] == (
        "aws_access_key_id = [redacted: aws-key-id]\naws_secret_access_key = [redacted: aws-secret-key]\n"
    )
    assert secrets.find(f"commit {hashlib.sha1(b'x').hexdigest()} by {identity}") == [Span(51, 71, "aws-key-id")]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('password = "{}"', "hunter2" + "!x"),
        ("db_password: '{}'", "Tr0ub4dor" + "&3"),
        ('{{"api_key": "{}"}}', random_text(24)),
        ("SECRET_KEY={}", random_text(40)),
        ("  client_secret: {}", random_text(32)),
        ('token = "{}"', random_text(40, ALNUM + "+/")),
        ("credential '{}'", random_text(40, "0123456789abcdef")),
        ('if ("{}" == user_password) {{', "Pa55" + "word!"),
        ('x = 1\npassword = "{}"\ny = 2', "s3" + "cret-9"),
        ("word " * 200_000 + 'password = "{}"', "hunter2" + "!x"),
    ],
    ids=range(10),
)
def test_a_value_that_a_line_calls_a_credential(line, value):
    text = line.format(value)
    spans = secrets.find(text)
    assert [text[span.start : span.end] for span in spans] == [value]
    assert spans[0].rule in ("named-secret", "high-entropy-string")


def test_several_values_in_one_line():
    values = ["hunter2" + "!x", random_text(24), "Tr0ub4dor" + "&3"]
    line = json.dumps({"user": "maja", "password": values[0], "api_key": values[1], "note": "x", "secret": values[2]})
    assert [line[span.start : span.end] for span in secrets.find(line)] == values


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "HF_TOKEN=hf_" + "x" * 34,
        "hf_" + "a" * 34,
        'token = "your-token-here"',
        'password = "<your password>"',
        'password: "changeme123"',
        "export GITHUB_TOKEN=ghp_" + "X" * 36,
        "Authorization: Bearer <token>",
        "Authorization: Bearer YOUR_ACCESS_TOKEN_HERE",
        "Bearer certificates are paid to whoever holds them, which is why banks dislike them.",
        "postgres://user:password@localhost/db",
        "https://user:${PASSWORD}@host/",
        "https://host:8080/a@b and http://[::1]:8000/",
        "-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----",
        "The file begins with BEGIN RSA PRIVATE KEY and a line of dashes.",
        "password = os.environ['DB_PASSWORD']",
        "secret = get_secret('name-of-secret1')",
        'password = "${DB_PASSWORD1}"',
        "The password must have 8 characters and a digit.",
        "password: see chapter 12, section 4",
        'tokenizer = "HuggingFaceTB/SmolLM2-135M-Instruct"',
        "api_key = 'sk-" + "0" * 48 + "'",
        "skeleton: sk-folding-cube-loader-animation-small",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        'integrity="sha512-'
        + "z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg=="
        + '"',
        "id = '123e4567-e89b-12d3-a456-426614174000'",
        "ghp_short and hf_short and AKIA and eyJ and sk- and xoxb-",
        "eyJhbGciOiJub25lIn0 is the header of an unsigned one",
        "test_that_a_very_long_function_name_with_digits_42_is_no_token_at_all()",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
        "",
        "plain",
    ],
    ids=range(33),
)
def test_placeholders_and_ordinary_text_are_no_secrets(text):
    assert secrets.find(text) == []
    assert secrets.redact(text) == (text, {})


def test_several_secrets_in_one_text():
    first, second = "hf_" + random_text(34), "ghp_" + random_text(36)
    text = f"{first} {second}\n{first}\n{pem()}\n"
    clean, counts = secrets.redact(text)
    assert clean == (
        "[redacted: hugging-face-token] [redacted: github-token]\n"
        "[redacted: hugging-face-token]\n[redacted: private-key]\n"
    )
    assert counts == {"hugging-face-token": 2, "github-token": 1, "private-key": 1}
    assert secrets.find(clean) == []


def test_a_secret_of_two_rules_is_one_span():
    value = "hf_" + random_text(34)
    text = f'api_key = "{value}"  # https://maja:{value}@host.de'
    assert secrets.redact(text)[0] == (
        'api_key = "[redacted: hugging-face-token]"  # https://maja:[redacted: hugging-face-token]@host.de'
    )


def test_a_key_that_is_cut_off_is_found_to_its_end():
    text = "log:\n" + pem()[:400]
    assert secrets.redact(text)[0] == "log:\n[redacted: private-key]"


def test_a_span_holds_no_text():
    assert Span._fields == ("start", "end", "rule")
    value = "hf_" + random_text(34)
    assert value not in repr(secrets.find("x " + value))


def test_nothing_is_looked_up_in_the_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for _, value in PLANTED:
        secrets.find(f'token = "{value}"')


# -- personal data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        ("Write to maja.biene@stock.de today.", "maja.biene@stock.de", "e-mail-address"),
        ("<mailto:o'neil+list@a-b.co.uk>", "neil+list@a-b.co.uk", "e-mail-address"),
        ("M@JA.DE", "M@JA.DE", "e-mail-address"),
        ("Ring +49 30 901820 now", "+49 30 901820", "phone-number"),
        ("Ring +1 (415) 555-2671.", "+1 (415) 555-2671", "phone-number"),
        ("(+44) 20 7946 0958", "(+44) 20 7946 0958", "phone-number"),
        ("Office: (412) 268-4387", "(412) 268-4387", "phone-number"),
        ("fax 412-268-7395, open till six", "412-268-7395", "phone-number"),
        ("London 020 7946 0958", "020 7946 0958", "phone-number"),
        ("call me: 07911123456", "07911123456", "phone-number"),
    ],
    ids=range(10),
)
def test_personal_data(text, value, rule):
    assert [(text[span.start : span.end], span.rule) for span in secrets.find_personal(text)] == [(value, rule)]
    assert secrets.redact(text) == (text, {})
    assert secrets.redact(text, personal=True) == (text.replace(value, f"[redacted: {rule}]"), {rule: 1})


def test_numbers_of_other_regions_on_demand():
    text = "Berlin, (030) 901820"
    assert secrets.find_personal(text) == []
    assert secrets.find_personal(text, ("DE",)) == [Span(8, 20, "phone-number")]


@pytest.mark.parametrize(
    "text",
    [
        "torch 2.13.0, cuda 12.8.1.2, build 10.0.19041.1234",
        "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
        "2026-11-25 10:30:00, 25.11.2026, 11/25/2026 and 20261125103000",
        "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, ISBN-13: 9780306406157",
        "192.168.100.200 and 10.1.2.3:8080",
        "1,234,567,890 bytes or 1 234 567 890 bytes",
        "3.14159265358979 and 2272060800 10",
        "id 4155552671, order 20250012345",
        "Clause 252.227-7013 of the DFARS",
        "IBAN DE89 3704 0044 0532 0130 00, card 4111 1111 1111 1111",
        "pages 1234-5678, lines 100000-200000",
        "user@example.com, a@host.example, git@github.com:org/repo.git, noreply@stock.de",
        "icon@2x.png, torch@2.13.0, @decorator, a @ b",
        "0x12345678 0b10101010 1e-10 12345678901234567890",
        "| 2019 | 2020 | 2021 | 2022 |\n| 1200 | 1300 | 1400 | 1500 |",
        "",
    ],
    ids=range(16),
)
def test_numbers_that_are_no_phone_numbers_and_addresses_of_nobody(text):
    assert secrets.find_personal(text) == []
