"""Credentials and personal data in a text: where they stand, and the text without them.

Rules of detect-secrets and own ones for what it misses. A span says where and by which rule, never what: no value
gets into an exception, a log or a repr. A rule is only tried where a literal of it stands: documentation ran at
50 MB/s a core, source code at 35. Nothing is verified over the network.

Of detect-secrets' plugins are left out, because they call too much in documents a secret: public IP addresses
(documentation is full of them), Artifactory (AP and eight letters: any long word in capitals), Private Key (the
mere name of the header; the whole block is found here), and its GitHub, AWS, Slack, OpenAI, JWT and basic-auth
patterns, which find too much or only a part of the token; own ones stand for them. Its entropy detectors and its
looser keyword patterns are only asked about lines that name a credential.
"""

import functools
import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Characters `start` to `end` (as in slices), and the rule that found them."""

    start: int
    end: int
    rule: str


def find(text: str) -> list[Span]:
    """Credentials in a text, in order, none inside another; placeholders of documentation are none."""
    found = [*_tokens(text), *_blocks(text)]
    lower = text.lower()
    if _any_in(NAMES, lower):
        found += _named(text, lower)
    return _apart(found) if found else found


def _any_in(words: tuple[str, ...], text: str) -> bool:
    for word in words:  # noqa: SIM110 - any() with a generator takes twice as long
        if word in text:
            return True
    return False


def redact(text: str, personal: bool = False) -> tuple[str, dict[str, int]]:
    """The text with `[redacted: RULE]` for every credential (`personal`: and every address and number of people), and
    how many were replaced by rule."""
    spans = _apart([*find(text), *(find_personal(text) if personal else ())])
    return replaced(text, spans), dict(Counter(span.rule for span in spans))


def replaced(text: str, spans: list[Span]) -> str:
    """The text with `[redacted: RULE]` in place of each span; spans are in order and apart."""
    parts, place = [], 0
    for span in spans:
        parts += [text[place : span.start], f"[redacted: {span.rule}]"]
        place = span.end
    return "".join([*parts, text[place:]])


def _apart(spans: list[Span]) -> list[Span]:
    """Spans in order; of those that overlap the one that begins first, then the longest, grown over the others."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if kept and span.start < kept[-1].end:
            kept[-1] = kept[-1]._replace(end=max(kept[-1].end, span.end))
        else:
            kept.append(span)
    return kept


# -- placeholders -------------------------------------------------------------------------------------------

# What documentation writes in the place of a value.
PLACEHOLDER = re.compile(
    r"example|xxxx|\*\*\*|\.\.\.|your|placeholder|change_?-?me|dummy|redacted|insert|replace|sample|not-?real|fake|"
    r"12345678|abcdefgh|(?:token|key|password|secret)-?_?here|<|>|\{|\}|\$\(|^\$|^%|%s|^(?:none|null|true|false)$",
    re.IGNORECASE,
)


def _placeholder(value: str) -> bool:
    """Whether a value is none: named so, a sequence, or made of fewer than six different characters."""
    return bool(PLACEHOLDER.search(value)) or len(set(value[-20:])) < min(6, len(value) // 2 + 1)


def _mixed(value: str) -> bool:
    """Letters and digits both: a name or a word has no digits, a number no letters."""
    return any(map(str.isalpha, value)) and any(map(str.isdigit, value))


# -- tokens: known by how they begin ------------------------------------------------------------------------
# A token is a word of letters, digits, - and _; a text without such a word of 20 characters holds none.

SHORTEST = 20  # an AWS key id
LETTERS = frozenset(string.ascii_letters + string.digits + "_-")
WORDS = bytes(code if chr(code) in LETTERS else 32 for code in range(256))
RUNS = bytes(97 if chr(code) in LETTERS else 32 for code in range(256))
RUN = b"a" * SHORTEST
WORD = re.compile(f"[A-Za-z0-9_-]{{{SHORTEST},}}")


class Rule(NamedTuple):
    """A word that begins with one of `literals` and is `pattern` as a whole, if `accept` does not say otherwise."""

    name: str
    literals: tuple[str, ...]
    pattern: re.Pattern
    accept: Callable[[str], bool] = lambda value: True


def _openai(value: str) -> bool:
    known = re.match(r"sk-(?:ant|proj|svcacct|admin|or)-", value)
    return bool(known) or (_mixed(value) and value != value.lower() and value.count("-") < 3)


RULES = [
    Rule("hugging-face-token", ("hf_", "api_org_"), re.compile("(?:hf_|api_org_)[A-Za-z0-9]{30,}")),
    Rule("github-token", ("ghp_", "gho_", "ghs_", "ghu_", "ghr_"), re.compile("gh[posur]_[A-Za-z0-9]{36,}")),
    Rule("github-token", ("github_pat_",), re.compile("github_pat_[A-Za-z0-9_]{22,}")),
    Rule(
        "aws-key-id", ("AKIA", "ASIA", "ABIA", "ACCA", "A3T"), re.compile("(?:A3T[A-Z0-9]|A[BKS]IA|ACCA)[A-Z0-9]{16}")
    ),
    Rule("slack-token", ("xox", "xapp-"), re.compile("(?:xox[abeoprs]|xapp)-(?:[A-Z0-9]+-)+[A-Za-z0-9-]{10,}")),
    Rule("google-api-key", ("AIza", "GOCSPX-"), re.compile("AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}")),
    Rule("openai-style-key", ("sk-",), re.compile("sk-[A-Za-z0-9_-]{20,}"), _openai),
]
PLUGINS = [  # of detect-secrets, with what their tokens begin with
    ("gitlab-token", "gitlab_token.GitLabTokenDetector", ("glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "GR1348941")),
    ("gitlab-token", "gitlab_token.GitLabTokenDetector", ("glcbt-", "glimt-", "glptt-", "glagent-", "gloas-")),
    ("stripe-key", "stripe.StripeDetector", ("sk_live_", "rk_live_")),
    ("square-secret", "square_oauth.SquareOAuthDetector", ("sq0csp-",)),
    ("pypi-token", "pypi_token.PypiTokenDetector", ("pypi-AgE",)),
    ("mailchimp-key", "mailchimp.MailchimpDetector", tuple(string.digits + "abcdef")),
    ("twilio-key", "twilio.TwilioKeyDetector", ("AC", "SK")),
]
OPENINGS = tuple({literal for rule in (*RULES, *PLUGINS) for literal in rule[1 if isinstance(rule, Rule) else 2]})


@functools.cache
def _rules() -> list[Rule]:
    """Own rules and those of detect-secrets. Its import costs 0.2 s, so it waits for a text that needs it."""
    return RULES + [
        Rule(name, literals, re.compile(pattern.pattern, pattern.flags), _mixed)
        for name, plugin, literals in PLUGINS
        for pattern in _plugin(plugin).denylist
    ]


def _plugin(name: str) -> type:
    module, plugin = name.split(".")
    return getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), plugin)


def _tokens(text: str) -> Iterator[Span]:
    raw = text.encode("ascii", "replace")
    if RUN not in raw.translate(RUNS):
        return
    ids = []
    words = {word.decode() for word in raw.translate(WORDS).split() if len(word) >= SHORTEST}
    for word in sorted(words | {word.strip("_-") for word in words}):
        rule = _rule_of(word, _rules()) if word.startswith(OPENINGS) else None
        for place in _places(text, word) if rule else ():
            ids += [place] if rule == "aws-key-id" else []
            yield Span(place, place + len(word), rule)
    for place in ids:
        yield from _secrets_near(text, place)
    yield from _dotted(text, words)


def well_known(text: str) -> str | None:
    """The rule by which a word of the text is a token, by this module's own rules: needs no library."""
    words = WORD.findall(text)
    return next(filter(None, (_rule_of(word, RULES) for word in [*words, *(word.strip("_-") for word in words)])), None)


def _rule_of(word: str, rules: list[Rule]) -> str | None:
    for rule in rules:
        if word.startswith(rule.literals) and rule.pattern.fullmatch(word):
            return rule.name if rule.accept(word) and not _placeholder(word) else None
    return None


def _places(text: str, word: str) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + len(word))


JSON_WEB_TOKEN = re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?")
GOOGLE_OAUTH = re.compile(r"(?<![\w-])ya29\.[0-9A-Za-z_-]{20,}")


def _dotted(text: str, words: set[str]) -> Iterator[Span]:
    """Tokens of several words, of which one is long."""
    if any(word.startswith("eyJ") for word in words):
        yield from _plugin_matches(
            text, "json-web-token", JSON_WEB_TOKEN, _plugin("jwt.JwtTokenDetector").is_formally_valid
        )
    if "SG." in text:
        yield from _plugin_matches(text, "sendgrid-key", *_plugin("sendgrid.SendGridDetector").denylist)
    if "ya29." in text:
        yield from _plugin_matches(text, "google-oauth-token", GOOGLE_OAUTH)
    if any(24 <= len(word) <= 26 and word[0] in "MNO" for word in words):
        yield from _plugin_matches(text, "discord-token", *_plugin("discord.DiscordBotTokenDetector").denylist)
    if any(len(word) == 35 for word in words):
        yield from _plugin_matches(text, "telegram-token", *_plugin("telegram_token.TelegramBotTokenDetector").denylist)


def _plugin_matches(
    text: str, name: str, pattern: re.Pattern, accept: Callable[[str], bool] | None = None
) -> Iterator[Span]:
    """Matches of a pattern that is anchored nowhere, where they are whole words."""
    for match in pattern.finditer(text):
        around = text[max(0, match.start() - 1) : match.start()] + text[match.end() : match.end() + 1]
        if LETTERS.isdisjoint(around) and not _placeholder(match[0]) and (accept or _mixed)(match[0]):
            yield Span(*match.span(), name)


AWS_SECRET = re.compile(r"(?<![A-Za-z0-9/+=_-])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_-])")


def _secrets_near(text: str, place: int) -> Iterator[Span]:
    """AWS secret keys within 300 characters of a key id: forty characters of both cases and digits."""
    for secret in AWS_SECRET.finditer(text, max(0, place - 300), place + 320):
        value = secret[0]
        if _mixed(value) and value != value.lower() and value != value.upper() and not _placeholder(value):
            yield Span(*secret.span(), "aws-secret-key")


# -- blocks: known by what stands around them ----------------------------------------------------------------

PEM = re.compile(
    r"-----BEGIN (?P<kind>[A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?)-----"
    r"(?P<body>(?:(?!-----)[\s\S]){1,20000}?)(?:-----END (?P=kind)-----|(?=-----)|\Z)"
)
PEM_BODY = re.compile(r"[A-Za-z0-9+/]{40}")
PUTTY = re.compile(r"PuTTY-User-Key-File-\d:.*\n(?:.*\n){1,400}?Private-MAC: ?[0-9a-f]+")
BEARER = re.compile(r"(?i:\bbearer)\s+([A-Za-z0-9._~+/-]{20,}=*)")
URL_PASSWORD = re.compile(r"://[^\s/:@\"'<>]{0,100}:([^\s/@\"'<>]{4,200})@[\w.-]")
AZURE = re.compile(r"AccountKey=([A-Za-z0-9+/]{86}==)")
NPM = re.compile(r"//\S{1,200}/:_authToken=\s*([\w-]{30,})")
WEBHOOK = re.compile(r"https://hooks\.slack\.com/services/(T\w+/B\w+/\w{8,})")
COMMON_PASSWORDS = {
    "password",
    "passwd",
    "pass",
    "secret",
    "token",
    "port",
    "postgres",
    "root",
    "admin",
    "guest",
    "test",
}


def _blocks(text: str) -> Iterator[Span]:
    if "PRIVATE KEY" in text:
        yield from (Span(*m.span(), "private-key") for m in PEM.finditer(text) if PEM_BODY.search(m["body"]))
    if "PuTTY-User-Key-File" in text:
        yield from (Span(*m.span(), "private-key") for m in PUTTY.finditer(text))
    if "earer " in text or "EARER " in text:
        yield from _group(BEARER, text, "bearer-token", _mixed)
    if "://" in text and "@" in text:
        yield from _group(URL_PASSWORD, text, "url-password", lambda value: value.lower() not in COMMON_PASSWORDS)
    if "AccountKey=" in text:
        yield from _group(AZURE, text, "azure-storage-key")
    if "_authToken" in text:
        yield from _group(NPM, text, "npm-token", _mixed)
    if "hooks.slack.com" in text:
        yield from _group(WEBHOOK, text, "slack-webhook")


def _group(pattern: re.Pattern, text: str, name: str, accept=lambda value: True) -> Iterator[Span]:
    for match in pattern.finditer(text):
        if not _placeholder(match[1]) and accept(match[1]):
            yield Span(*match.span(1), name)


# -- named: values that a line calls a credential ------------------------------------------------------------

KEYWORDS = ("passw", "pwd", "secret", "apikey", "_key", "db_pass", "contrase")  # in detect-secrets' own keywords
NAMES = (*KEYWORDS, "token", "credential", "api-key")
NAMED = re.compile("|".join(map(re.escape, NAMES)).replace("token", "token(?!i)"))  # no tokenizer
LINE = 300  # characters before and after a name in which its value is looked for: lines may be endless


def _named(text: str, lower: str) -> Iterator[Span]:
    """Values in lines that name a credential, by detect-secrets' keyword and entropy detectors."""
    done = 0
    for match in NAMED.finditer(lower if len(lower) == len(text) else text):
        if match.start() < done:
            continue
        start = max(text.rfind("\n", 0, match.start()) + 1, match.start() - LINE, done)
        stop = text.find("\n", match.end(), match.end() + LINE)
        done = min(len(text), match.end() + LINE) if stop < 0 else stop
        while ASSIGNS.search(
            text, start, done
        ):  # the detectors give the first value of a line: the rest is asked again
            found = [Span(start + begin, start + end, rule) for begin, end, rule in _values(text[start:done])]
            yield from found
            start = max((span.end for span in found), default=done)


ASSIGNS = re.compile(r"[=:(]\s*[^\s]{6}|[\"'`][^\s\"'`]{6}")
QUOTED = re.compile(r"[\"'][A-Za-z0-9+/=_\\-]{16,}[\"']")


def _values(line: str) -> Iterator[tuple[int, int, str]]:
    """Where in a line a value stands that is one, and the rule's name."""
    keywords, entropy = _detectors()
    chosen = keywords if _any_in(KEYWORDS, line.lower()) else []
    for name, detector, options, accept in [*chosen, *(entropy if QUOTED.search(line) else ())]:
        for value in map(str.strip, detector.analyze_string(line, **options)):
            place = line.find(value)
            if len(value) >= 6 and place >= 0 and accept(value) and not (_placeholder(value) or _excused(value, line)):
                yield place, place + len(value), name


def _excused(value: str, line: str) -> bool:
    """detect-secrets' own reasons to take a value for none."""
    from detect_secrets.filters import heuristic

    checks = (
        heuristic.is_sequential_string,
        heuristic.is_potential_uuid,
        heuristic.is_templated_secret,
        heuristic.is_prefixed_with_dollar_sign,
    )
    return any(check(value) for check in checks) or heuristic.is_likely_id_string(value, line)


Detector = tuple[str, object, dict, Callable[[str], bool]]


@functools.cache
def _detectors() -> tuple[list[Detector], list[Detector]]:
    """By keyword and by entropy: the rule's name, the plugin, its options, and which values are accepted."""
    from detect_secrets.plugins import high_entropy_strings, keyword

    quoted = {"denylist_regex_to_group": keyword.QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP}
    config = {"denylist_regex_to_group": keyword.CONFIG_DENYLIST_REGEX_TO_GROUP}
    base64 = high_entropy_strings.Base64HighEntropyString(limit=4.5)
    hexadecimal = high_entropy_strings.HexHighEntropyString(limit=3.0)
    return [
        ("named-secret", keyword.KeywordDetector(), quoted, _password),
        ("named-secret", keyword.KeywordDetector(), config, _long_random),
    ], [
        ("high-entropy-string", base64, {}, lambda value: _random(value) and _entropy(base64, value)),
        ("high-entropy-string", hexadecimal, {}, lambda value: len(value) >= 32 and _entropy(hexadecimal, value)),
    ]


def _entropy(detector, value: str) -> bool:
    return detector.calculate_shannon_entropy(value) > detector.entropy_limit


def _password(value: str) -> bool:
    """No spaces, letters with digits or signs: what stands in quotation marks behind a name such as password."""
    return not re.search(r"\s|[()\[\]{}]", value) and _mixed(value) and len(set(value)) > 4


def _random(value: str) -> bool:
    """Sixteen characters or more in a row, in both cases and with digits: a path or a name has shorter parts."""
    return any(
        len(part) >= 16 and _mixed(part) and part != part.lower() and part != part.upper()
        for part in re.split(r"[/_-]", value)
    )


def _long_random(value: str) -> bool:
    """As above where there are no quotation marks: one word of sixteen characters or more in both cases."""
    return re.fullmatch(r"[\w+/=.~!@#%^&*-]+", value) is not None and _random(value)


# -- personal data -------------------------------------------------------------------------------------------

EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9](?:[\w.%+-]{0,62}[\w%+-])?@"
    r"((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24}))(?![\w-])"
)
NO_PERSON = re.compile(
    r"^(?:git|noreply|no-reply|donotreply)@|@(?:[\w-]+\.)*(?:example\.\w+|example|invalid|test|localhost|local)$",
    re.IGNORECASE,
)
FILES = {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "py", "json", "html", "md", "txt", "pdf", "zip"}
# Digits with what numbers are written with, eight digits at least.
NUMBER = re.compile(r"(?<![\w.,/:=#@$€£-])[+(]{0,2}\d[\d ().\u00a0/-]{6,24}\d(?![\w%]|[.,:/-]\d)")
CUE = re.compile(
    r"\b(?:tel|telephone|phone|call|ring|mobile|cell|fax|whatsapp|text|sms|dial|contact)\W{0,3}(?:\w+\W{1,3}){0,3}$",
    re.I,
)
NO_NUMBER = re.compile(  # dates, ISBNs, addresses of machines, decimals, ranges
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|97[89][- ]?\d|(?:\d{1,3}\.){3}\d{1,3}|\d+\.\d+$|"
    r"\d{4} ?[-/] ?\d{4}$"
)
DIGITS = bytes(48 if chr(code) in string.digits else 32 for code in range(256))
BETWEEN = b" ().-/+"  # deleted before digits in a row are looked for
REGIONS = ("US", "GB")


def find_personal(text: str, regions: tuple[str, ...] = REGIONS) -> list[Span]:
    """E-mail addresses and phone numbers in a text, in order. Numbers with a country's code are found everywhere,
    others as people of `regions` (ISO codes) write them. Addresses of the domains reserved for examples are none."""
    found: list[Span] = []
    if "@" in text:
        found += (Span(*m.span(), "e-mail-address") for m in EMAIL.finditer(text) if _is_address(m))
    if b"0" * 8 in text.encode("ascii", "replace").translate(DIGITS, BETWEEN):
        found += _numbers(text, regions)
    return _apart(found)


def _is_address(match: re.Match) -> bool:
    return match[2].lower() not in FILES and not NO_PERSON.search(match[0]) and "." not in match[0][:1]


def _numbers(text: str, regions: tuple[str, ...]) -> Iterator[Span]:
    for match in NUMBER.finditer(text):
        number, international = match[0], match[0].startswith(("+", "(+"))
        groups = re.findall(r"\d+", number)
        digits = sum(map(len, groups))
        # E.164 has fifteen digits at most; a list of single digits is none, and the library takes 0.1 ms a try.
        if not 8 <= digits <= (15 if international else 12) or [len(group) for group in groups].count(1) > 2:
            continue
        if not NO_NUMBER.match(number.lstrip("+(")):
            called = bool(CUE.search(text, max(0, match.start() - 40), match.start()))
            place = _number(number, international, regions, called)
            if place:
                yield Span(match.start() + place[0], match.start() + place[1], "phone-number")


def _number(number: str, international: bool, regions: tuple[str, ...], called: bool) -> tuple[int, int] | None:
    """Where a phone number stands in a run of digits and signs. Without a country's code it must be grouped as in
    its region, or stand behind a word such as phone: ten digits in a row are mostly an id."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    leniency = Leniency.VALID if international or called else Leniency.STRICT_GROUPING
    for region in (None,) if international else regions:
        for match in PhoneNumberMatcher(number, region, leniency):
            signs = set(match.raw_string) & set("./-")
            if international or called or (len(signs) < 2 and re.search(r"\d[ ().-]+\d", match.raw_string)):
                return match.start, match.end
    return None
