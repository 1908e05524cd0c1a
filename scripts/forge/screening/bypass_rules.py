"""The words and patterns by which bypass data is recognised, and what is no bypass although it looks like one.

The patterns stand in bypass_patterns.txt, in a notation of their own that is explained there. Each exists twice: for
text, and for text that was spelled out letter by letter, where spaces stand for nothing.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from forge.screening.disguise import Watch

PATTERNS = Path(__file__).with_name("bypass_patterns.txt")
NEGATION = "(?:not|no|never|nor|neither|without|why|what|whether|if|how|wont|cant|cannot|dont|isnt|arent|than|unlike)"
SEPARATOR = r"(?:(?:[^\w.!?]|_){1,6})"  # in brackets of its own: a ? may follow
SURE, HINT = 2, 1  # points of a rule in an answer: two are needed, or one beside a prompt that sets a bypass


def _read() -> tuple[dict[str, list[str]], dict[str, list[tuple[str, int, str]]]]:
    """Watched words and phrases by name, and the rules of answers and prompts: name, points, pattern."""
    words: dict[str, str] = {}
    watched: dict[str, list[str]] = {}
    tables: dict[str, list[tuple[str, int, str]]] = {"answer": [], "prompt": []}
    for line in PATTERNS.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        head, _, value = line.partition(" = ")
        section, *more = head.split()
        value = re.sub(r"<(\w+)>", lambda name: words[name[1]], value)
        if section == "words":
            words[more[0]] = value
        elif section == "watch":
            watched.setdefault(more[0], []).extend(value.split(", " if "phrases" in more[0] else " "))
        else:
            tables[section].append((more[1], {"sure": SURE, "hint": HINT}[more[0]], value))
    return watched, tables


_WATCHED, _TABLES = _read()
ANSWER, PROMPT = _TABLES["answer"], _TABLES["prompt"]
LONE, PHRASES = _WATCHED["lone"], _WATCHED["phrases"]
BYPASS = [*PHRASES, *_WATCHED["context-phrases"]]
WATCH_ANSWER = Watch(LONE, PHRASES, _WATCHED["rules"], [_WATCHED["first"], [*_WATCHED["lacking"], *_WATCHED["all"]]])
WATCH_PROMPT = Watch([*LONE, *_WATCHED["context"]], BYPASS, _WATCHED["rules"], [_WATCHED["lacking"]])


def stems(*listed: str) -> tuple[str, ...]:
    """Words without those that begin with another one."""
    return tuple(word for word in listed if not any(word != other and word.startswith(other) for other in listed))


NAMES = re.compile("(DAN|STAN|DUDE)")
NEAR_KNOWN = stems("DAN", *(word for word in LONE if word != "dan"), *PHRASES)
NEAR_ANSWER = stems(*NEAR_KNOWN, *_WATCHED["rules"])
NEAR_PROMPT = stems(*NEAR_ANSWER, "STAN", "DUDE", *_WATCHED["context"], *BYPASS)
PERSON = re.compile(r"\b(?:i|im|ive|ill|my)\b|" + "|".join(NEAR_KNOWN))

# -- what excuses a match -----------------------------------------------------------------------------------
# Matched against text without apostrophes: "I won't" is "I wont".

QUOTED = re.compile(r"```(?s:.)*?```|\"[^\"\n]*\"|`[^`\n]*`|^>.*", re.MULTILINE)
# "I won't say that ...": in the same sentence before the match, with no "but" between.
DENIED = re.compile(
    r"\b(?:wont|cant|cannot|not|never|dont|doesnt|isnt|wouldnt|refuse to|decline to|unable to|instead of|rather than)"
    r"(?: \w+){0,3}? (?:say|saying|pretend|act|acting|claim|be|become|speak|answer|answering|play|playing|"
    r"take|confirm|"
    r"repeat|adopt|write|agree|respond|continue|promise|tell|call|imitate|produce|pose|true|mean|think|believe)\b"
    r"(?! no\b)(?!.*\b(?:but|however|yet)\b)",
    re.IGNORECASE,
)
# "If the user asks you to ...", "Never ...": the prompt speaks of a bypass or forbids one.
MENTIONED = re.compile(
    r"\b(?:detect|block|prevent|recogni[sz]e|resist|against|(?:if|when) (?:the|a|any|some) ?(?:user|person|"
    r"customer|one)|"
    r"attempts? to|asks (?:you|it|them) to|requests? to|(?:prompts?|jailbreaks?|rows?) (?:that|which|like|"
    r"such)|phrase|"
    r"injections?|ask(?:s|ed)? (?:the|a) (?:model|ai|chatbot|assistant))\b"
    r"|\b(?:never|not|dont|cannot|cant|wont|doesnt|refuse to|decline to)(?: (?!and\b|or\b|but\b)\w+){0,4}\s*$",
    re.IGNORECASE,
)
ABOUT = re.compile(
    r"^\W*(?:so |and |please |hi |hello )*(?:what|whats|why|how (?:do|does|can|did|are|is|to|would i|could i|"
    r"should|many)|"
    r"who|when|where|which|explain|describe|define|summari[sz]e|tell me (?:about|what|why|how)|is|are|was|"
    r"were|does|did|"
    r"should|can (?:base|a|an|i|we|one)|name|list|classify|detect|show me how to|write (?:a|an) (?:test|rule|"
    r"filter|policy|"
    r"unit test|regex|regular expression|lecture|report|article|essay|summary|lesson)|draft|give me an overview)\b",
    re.IGNORECASE,
)
SUPPOSED = re.compile(
    r"\b(?:if you (?:had|were|have|are|could)|pretend|imagine|as if|act as|you are|from now)\b", re.IGNORECASE
)
HANDED = re.compile(
    r"^\W*(?:please |can you |could you )*(?:summari[sz]e|translate|proofread|classify|correct|rewrite|review|"
    r"extract|label|"
    r"is (?:this|the following)|what (?:is|does) (?:this|the following)|here is (?:an?|the|my) (?:email|text|"
    r"page|document))\b"
    r"[^\n:]*[:\n]",
    re.IGNORECASE,
)

# -- how answers go along, and how they decline --------------------------------------------------------------

BEGINS = re.compile(
    r"^\W*(?:\w+\W{1,3}){0,3}?(?:sure|certainly|absolutely|of course|gladly|understood|confirmed|got it|acknowledged|"
    r"affirmative|very well|yes|ok|okay|alright|right away|heh|haha|greetings|hell yeah|easy|ready|"
    r"as you wish|no problem|"
    r"with pleasure|im in|i am in|i obey|i will obey|i comply|i understand|activated|enabled|initiated|"
    r"suspended|at your "
    r"service|reporting|lesson one|master|mode (?:on|active))\b|^\W*\w+ speaking[.!:]"
    r"|\bhere(?: is| are|s) (?:how|the|a|an|your|my|everything|what|it|some|step)\b|\bis (?:easy|simple|"
    r"childs play)\b"
    r"|^\W*(?:step (?:1|one)|1[.)]|first(?:ly)?\b)|\bfirst,? (?:you|we|i|take|get|find|make|gather)\b|"
    r"\b(?:step|lesson) (?:1|one)\b"
    r"|^\W*to \w+ [^.!?:]{3,60}, (?:you|begin|start|first|get|take|find)\b|\byou (?:start|begin) (?:by|with)\b",
    re.IGNORECASE,
)
# The first voice declines, the second one does as asked.
TWO_VOICES = re.compile(
    r"(?:^|\n)\W*[\w ]{2,24}\W{0,3}[:\]](?s:.){0,200}?\b(?:sorry|cant|cannot|"
    r"wont)\b(?s:.){0,2000}?\n\W*[\w ]{2,24}\W{0,3}[:\]]\W*\w",
    re.IGNORECASE,
)
PERSONAS = re.compile(
    r"\b(?:you are|youre|act as|pretend to be|you as|called|named|name is|speak as|role of|persona of|be|play|"
    r"simulate|as) (?:now )?"
    r"(?:an? |the |my )?(?-i:([A-Z][\w-]{2,24}))\b",
    re.IGNORECASE,
)
ADOPTS = (
    r"^\W*NAME\b|\b(?:I am|Im|[Aa]s|Call me|[Tt]his is) NAME\b|"
    r"\bNAME (?:here|speaking|reporting|at your|online|is ready|says)\b"
)
GOES_ON = (
    r"(?:refus\w*|say no|be stopped|hold|lecture|judge|care|mind|have|follow|obey|need|wait|deny|decline|censor|warn|"
    r"morali[sz]e|respect|adhere|abide|recogni[sz]e|bound|limited|restricted|filtered|censored|stop|"
    r"ever refuse|only|just|"
    r"nothing|in character|be stopped|let you down|so i|so ill)"
)
DECLINES = re.compile(
    rf"\bi (?:(?:really|simply|just|still|also|must|have to|do|am|will|would) )*(?:cant|cannot|can not|wont|"
    rf"will not|not|"
    rf"rather not|d rather|decline|refuse|unable|couldnt|wouldnt|dont|shall not|keep|stay|"
    rf"stick to)\b(?!,? (?:\w+ )?{GOES_ON})"
    rf"|\b(?:im not|id rather|ill (?:keep|stay|leave)|id prefer)\b(?! (?:\w+ )?{GOES_ON})|"
    rf"\bwont\b(?! (?:\w+ )?{GOES_ON})"
    r"|\bsorry\b(?! (?:to keep|for the (?:wait|delay)))"
    r"|\bthere (?:is|are|s) (?:no|only) (?:such|developer|override|hidden|secret|mode|special|other|unfiltered|one)"
    r"|(?<!no )\b(?:rules|guidelines|limits|values|policy|filters?|safeguards|"
    r"instructions)\b[^.!?]{0,40}\b(?:stays?|remains?|"
    r"holds?(?! me)|still appl(?:y|ies)|cant be|cannot be|in place|the same)\b"
    r"|\b(?:doesnt|does not|dont|do not|not) (?:\w+ ){0,2}change\b|\bchanges? nothing|"
    r"\bnothing (?:about me )?(?:has )?changed"
    r"|\b(?:only|just|a single) (?:one )?version|\b(?:as|stay|be) myself\b|\bisnt (?:a real|true|something|"
    r"how)|\bnot true\b"
    rf"|^\W*(?:no|nope)\b(?! (?:problem|worries|limits?|rules?|restrictions?|filters?|request|need|warnings?))"
    r"|^\W*not (?:even|a chance|going)\b",
    re.IGNORECASE,
)
HELPS = re.compile(
    r"\bplease (?:call|ring|text|talk|speak|tell|seek|see|reach)\b|\b(?:116 123|988|samaritans|crisis line|"
    r"helpline|hotline)\b|"
    r"\b(?:im|i am) (?:worried|concerned)\b|\b(?:talk|speak|reach out) to (?:a|an|your|someone|somebody)\b|"
    r"\bseek (?:help|medical)\b",
    re.IGNORECASE,
)


@functools.cache
def compiled(pattern: str, squeezed: bool = False) -> re.Pattern:
    """A pattern in the notation above as a regular expression, to be used by `matches`."""
    if squeezed:
        pattern = re.sub(r"~(\d)", lambda gap: rf"\w{{0,{8 * int(gap[1])}}}?", pattern)
        return re.compile(pattern.replace(r"\b", "").replace(" ?", "").replace(" ", ""))
    pattern = re.sub(r"~(\d)", rf"(?: (?!{NEGATION}\\b)\\w+){{0,\1}}?", pattern)
    return re.compile(rf"(?:{pattern.replace(' ', SEPARATOR)})(?!\w)")


def matches(pattern: str, text: str, start: int, stop: int, squeezed: bool = False) -> Iterator[re.Match]:
    """Matches that begin with a word, in a text from `lowered`. A lookbehind in the pattern would say the same and
    keep `re` from searching for its first letter: 23 us a page and pattern instead of 4."""
    found = compiled(pattern, squeezed)
    while match := found.search(text, start, stop):
        if squeezed or match.start() == 0 or not (text[match.start() - 1].isalnum() and match[0][:1].isalnum()):
            yield match
        start = match.start() + 1


def lowered(text: str) -> str:
    """Lower case, apostrophes dropped (don't and dont are one word), names that are written in capitals kept."""
    parts = NAMES.split(text.replace("'", ""))
    return "".join(part if number % 2 else part.lower() for number, part in enumerate(parts))
