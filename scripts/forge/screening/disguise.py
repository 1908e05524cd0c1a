"""What a text says once its disguise is taken off: invisible characters, look-alikes, leetspeak, spacing, encodings.

`readings` gives every reading of a text that is worth matching, and none for a text without a watched word, so that
ordinary text costs little: one translation of its bytes, one split into words, one intersection of sets. Words are
compared by skeleton: lower case, digits as the letters that they stand for, and `l` as `i`, because 1 is both.
"""

import base64
import binascii
import codecs
import re
import string
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_plus

LEAST, MOST = 24, 20_000  # characters of an encoded segment: shorter ones hold no sentence, longer ones are data
DEPTH = 2  # base64 of base64 is read, a third layer is not
READABLE = 0.9  # share of letters and spaces that decoded bytes must have to be taken for text

# -- characters ---------------------------------------------------------------------------------------------

TAGS = range(0xE0020, 0xE007F)  # invisible copies of ASCII's printable characters: they can carry a whole text
TAG = b"\xf3\xa0"  # how their UTF-8 begins
INVISIBLE = {
    *(code for code in range(0x2000, 0x2070) if unicodedata.category(chr(code)) == "Cf"),  # zero-width, bidi
    *range(0xFE00, 0xFE10),  # variation selectors
    *range(0xE0000, 0xE01F0),  # tags, more variation selectors
    *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180E, 0x3164, 0xFEFF, 0xFFA0),
}

# Characters that look like Latin ones, each before the one that it looks like.
CYRILLIC = "аa вb гr еe зz иu кk мm нh оo пn рp сc тt уy хx ьb яr ѕs іi јj ѡw ѵv ґr үy һh ӏl ԁd ԍg ԛq ԝw"
CYRILLIC += " АA ВB ЕE ЗZ ІI ЈJ КK МM НH ОO РP СC ТT УY ХX ЯR ЅS ӀI ԌG ԚQ ԜW"
GREEK = "αa βb γy δd εe ηn θo ιi κk λl μm νv οo πn ρp ςs σo τt υu χx ωw ϲc"
GREEK += " ΑA ΒB ΕE ΖZ ΗH ΙI ΚK ΜM ΝN ΟO ΡP ΣE ΤT ΥY ΧX ϹC"
OTHERS = "օo ոn սu հh ցg զq ɑa ɡg ıi ɩi ᴀa ʙb ᴄc ᴅd ᴇe ꜰf ɢg ʜh ɪi ᴊj ᴋk ʟl ᴍm ɴn ᴏo ᴘp ʀr ꜱs ᴛt ᴜu ᴠv ᴡw ʏy ᴢz"
OTHERS += " ‘' ’' ‛' ʼ' ′' “\" ”\" „\" «\" »\" ‐- ‑- ‒- –- —- −-"
FOLD = dict.fromkeys(INVISIBLE) | {ord(pair[0]): pair[-1] for pair in f"{CYRILLIC} {GREEK} {OTHERS}".split()}
for first in (0x1F150, 0x1F170, 0x1F1E6):  # letters in black circles, in black squares, and as halves of flags
    FOLD |= {first + number: letter for number, letter in enumerate(string.ascii_uppercase)}
FOLDED = frozenset(map(chr, FOLD))

# What ordinary text holds above ASCII and what disguises nothing: with it alone, a text's bytes are good enough.
HARMLESS = frozenset("‘’“”„«»‐‑–—…•·°§©®™×→←✓─│├└\u00a0€£")
ASCII = bytes(range(128))
MARKS = re.compile("[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")  # accents, alone


def uncovered(text: str) -> str:
    """The text in plain letters. Compatibility forms are resolved as in NFKC, invisible characters and accents
    dropped, look-alikes folded to Latin letters. Letter case and line breaks stay."""
    if text.isascii():
        return text
    opened = unicodedata.normalize("NFKD", text.translate(FOLD))
    return opened if opened.isascii() else MARKS.sub("", opened.translate(FOLD))


# -- watched words ------------------------------------------------------------------------------------------

LEET = dict(zip("0134578@$", "oieastbas", strict=True))
LETTERS = frozenset(bytes([code]) for code in range(ord("a"), ord("z") + 1))
SPELLED = 4  # different letters that stand alone: fewer are variables, initials and the words a and I
ALONE = b" a" * 6 + b" "
SHAPE = bytes(code if code == 32 else 97 for code in range(256))
LONG = b"a" * LEAST
ENCODED = bytes(97 if chr(code) in string.ascii_letters + string.digits + "+/" else 32 for code in range(256))


def _table() -> bytes:
    table = bytearray(b" " * 256)
    for letter in string.ascii_letters + string.digits:
        table[ord(letter)] = ord(letter.lower())
    for odd, letter in [*LEET.items(), ("l", "i"), ("L", "i")]:
        table[ord(odd)] = ord(letter)
    return bytes(table)


TABLE = _table()


def skeleton(text: str) -> bytes:
    """Words of a text in ASCII as they are compared, one space between and around them; apostrophes are dropped."""
    return b" %s " % b" ".join(text.encode("ascii", "ignore").translate(TABLE, b"'").split())


def _plain_bytes(text: str) -> bytes:
    """The text's ASCII, cheaply: look-alikes are only folded where there are some."""
    if text.isascii():
        return text.encode()
    raw = text.encode("utf-8", "ignore")
    odd = set(raw.translate(None, ASCII).decode("utf-8"))
    if odd <= HARMLESS:
        return raw
    if FOLDED.isdisjoint(odd - HARMLESS):
        text = text.replace("—", " ").replace("–", " ").replace("…", " ")
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore")
    return uncovered(text).encode("ascii", "ignore")


PAIRS = frozenset(skeleton("20 61 65 69 6e 6f 72 73 74").split())  # hexadecimal: a space, a, e, i, n, o, r, s, t


class Seen(NamedTuple):
    """What a first look found: `worth` reading as it stands, `spelled` out letter by letter, and all watched words."""

    worth: bool
    spelled: bool
    hits: frozenset[bytes]


class Watch:
    """What to look for, all in plain lower case. `words` and `phrases` make a text worth reading wherever they stand,
    `pairs` only with a word of each of `beside` within 120 characters."""

    def __init__(self, words: list[str], phrases: list[str], pairs: list[str], beside: list[list[str]]):
        self.words, self.pairs = _skeletons(words), _skeletons(pairs)
        self.phrases: dict[bytes, list[bytes]] = {}  # by their longest word: they are looked for only beside it
        for phrase in map(skeleton, phrases):
            self.phrases.setdefault(max(phrase.split(), key=len), []).append(phrase)
        self.beside = [_skeletons(group) for group in beside]
        self.turned = _skeletons([codecs.encode(word, "rot13") for word in [*words, *pairs] if len(word) > 5])
        self.keys = frozenset(self.phrases)
        self.spoken = self.words.union(self.pairs, self.keys, *self.beside) - LETTERS  # 1 is no I yet
        self.all = self.spoken | self.turned | LETTERS | PAIRS

    def look(self, raw: bytes) -> Seen:
        words = raw.translate(TABLE, b"'").split()
        hits = self.all.intersection(words)
        pairs = self.pairs & hits if all(not group.isdisjoint(hits) for group in self.beside) else ()
        keys = self.keys & hits
        lone = len(hits & LETTERS) >= SPELLED
        joined = b" %s " % b" ".join(words) if pairs or keys or lone else b""
        worth = (
            not self.words.isdisjoint(hits)
            or any(self._beside(joined, word) for word in pairs)
            or any(phrase in joined for key in keys for phrase in self.phrases[key])
        )
        return Seen(worth, lone and ALONE in joined.translate(SHAPE), hits)

    def _beside(self, joined: bytes, word: bytes) -> bool:
        place = joined.find(b" %s " % word)
        while place >= 0:
            around = joined[max(0, place - 120) : place + 120].split()
            if all(not group.isdisjoint(around) for group in self.beside):
                return True
            place = joined.find(b" %s " % word, place + 1)
        return False


def _skeletons(words: list[str]) -> frozenset[bytes]:
    return frozenset(skeleton(" ".join(words)).split())


# -- readings -----------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """One way to read a text; `squeezed`: it was spelled out letter by letter, so its words have no spaces."""

    text: str
    squeezed: bool = False


def readings(text: str, watch: Watch, depth: int = DEPTH) -> list[Reading]:
    """Every reading that may hold what is watched for, the plain one first, none twice."""
    raw = _plain_bytes(text)
    seen = watch.look(raw)
    found = [Reading(uncovered(text))] if seen.worth else []
    if seen.worth and watch.look(raw.translate(LETTERED)).hits & watch.spoken != seen.hits & watch.spoken:
        found += [Reading(form) for form in _leet(found[0].text)]
    if seen.spelled:
        found += _spelled(uncovered(text))
    if depth:
        for segment in filter(None, _decoded(text, raw, watch, seen.hits)):
            found += readings(segment, watch, depth - 1)
    return list(dict.fromkeys(found))


LETTERED = bytes(32 if chr(code) in LEET else code for code in range(256))  # a text's bytes without leetspeak
DIGITS = str.maketrans({digit: letter.upper() for digit, letter in LEET.items()})  # D4N becomes DAN


def _leet(text: str) -> list[str]:
    """Digits as letters, 1 as i and 1 as l."""
    return [text.translate(DIGITS), text.translate(DIGITS | {ord("1"): "L"})]


SPELL = re.compile(r"(?<![^\W_])(?:[^\W_][\W_]{1,3}){5,}[^\W_](?![^\W_])")  # six letters or more that stand alone
GAP = re.compile(r"\s{2,}|(?<=\w)\s(?=\w[^\w\s])|(?<=[^\w\s]\w)\s")  # between words: wider, or of another kind


def _spelled(text: str) -> list[Reading]:
    """Letters that stand alone put together: by word where the gaps between words differ, and all in one, with the
    words beside them."""
    together = SPELL.sub(lambda run: " ".join(re.sub(r"[\W_]", "", word) for word in GAP.split(run[0])), text)
    if together == text:
        return []
    runs = (text[max(0, run.start() - 30) : run.end() + 30] for run in SPELL.finditer(text))
    return [Reading(together), *(Reading(re.sub(r"[\W_]", "", run), squeezed=True) for run in runs)]


# -- encodings ----------------------------------------------------------------------------------------------

BASE64 = re.compile(r"[A-Za-z0-9+/]+(?:\s?\n[A-Za-z0-9+/]{4,}(?==|\s*?(?:\n|$)))*=?=?")  # lines of it are one segment
HEX = re.compile(r"(?:(?:\\x|\\u00|0x)?[0-9A-Fa-f]{2}[\s,:;]{0,2}){12,}")
PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2}[\w.~+-]*){3,}")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
HEXADECIMAL = frozenset(string.hexdigits)
NOISE = re.compile(r"\\x|\\u00|0x|[^0-9A-Fa-f]")


def _decoded(text: str, raw: bytes, watch: Watch, hits: frozenset[bytes]) -> Iterator[str]:
    """Texts that stand encoded in a text, each of 24 to 20,000 characters before it is decoded."""
    if LONG in raw.translate(ENCODED):
        for segment in _long(text):
            if HEXADECIMAL.issuperset(segment[:LEAST]):
                yield _hex(segment)
            elif not segment.islower():  # a path
                yield _base64(segment)
    if len(hits & PAIRS) > 3 or "\\x" in text or "\\u00" in text or "0x" in text:
        yield from map(_hex, _bounded(HEX, text))
    if "%" in text:
        yield from map(unquote_plus, _bounded(PERCENT, text))
    if not watch.turned.isdisjoint(hits):
        yield codecs.encode(uncovered(text), "rot13")
    if not text.isascii() and TAG in text.encode("utf-8", "ignore"):
        yield "".join(chr(ord(char) - 0xE0000) for char in text if ord(char) in TAGS)


def _bounded(pattern: re.Pattern, text: str) -> Iterator[str]:
    return (match[0] for match in pattern.finditer(text) if LEAST <= len(match[0]) <= MOST)


def _long(text: str) -> Iterator[str]:
    """Runs of base64's characters, wrapped lines as one. A regular expression alone would try every place of a text:
    20 ns a character instead of 2."""
    marks, place = text.encode("ascii", "replace").translate(ENCODED), 0
    while (place := marks.find(LONG, place)) >= 0:
        match = BASE64.match(text, place)
        if len(match[0]) <= MOST:
            yield match[0]
        place = match.end()


def _base64(segment: str) -> str:
    """The text in a segment. Its first eighteen bytes tell it from paths and digests."""
    letters = segment if segment.isalnum() else re.sub(r"[\s=]", "", segment)
    try:
        if not _begins_text(base64.b64decode(letters[:24])):
            return ""
        whole = letters if len(letters) % 4 != 1 else letters[:-1]
        return _text(base64.b64decode(whole + "=" * (-len(whole) % 4)))
    except binascii.Error:
        return ""


def _begins_text(data: bytes) -> bool:
    try:
        return not CONTROL.search(data.replace(b"\0", b"").decode("utf-8"))
    except UnicodeDecodeError as error:
        return error.start > len(data) - 4  # a character that goes on behind the sample


def _hex(segment: str) -> str:
    digits = NOISE.sub("", segment)
    return _text(bytes.fromhex(digits[: len(digits) // 2 * 2]))


def _text(data: bytes) -> str:
    """Decoded bytes, if they are text. NULs are dropped: UTF-16's English is every second byte."""
    found = data.replace(b"\0", b"").decode("utf-8", "ignore")
    plain = uncovered(found)
    common = sum(char.isalnum() or char in " \n.,'=+/" for char in plain)
    return plain if len(found) > len(data) // 3 and common >= READABLE * len(plain) else ""
