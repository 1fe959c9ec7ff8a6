"""Messages of errors on one line, in words: those of jsonargparse about unions, and of errors that no check raises."""

import re

__all__ = ["TRACEBACK", "describe_error", "simplify"]

TRACEBACK = "OPENEDM_TRACEBACK"
"""The variable of the environment with which errors end in a traceback."""

MAX_MESSAGE = 500
"""The longest message of an error that is not expected."""

UNION = re.compile(
    r'(?:Parser key "(?P<key>[^"]*)": )?Does not validate against any of the Union subtypes '
    r"Subtypes: \[(?P<kinds>.*?)\] "
    r"Errors: - (?P<reasons>.*) Given value type: .*? Given value: (?P<value>.*)"
)
SINGLE = re.compile(
    r'Parser key "(?P<key>[^"]*)": Expected a (?P<kind><class \'[\w.]+\'>|typing\.Literal\[[^]]*\])\. Got value:'
)
INSIDE = re.compile(r"(?P<where>Parser key \"[^\"]*\": Problem with given class_path '[^']*': )(?P<what>Parser key .*)")
WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
}


def simplify(message: str) -> str:
    """jsonargparse's message on one line; for a union, the reason of its members, or else the kinds that are allowed.

    >>> simplify('Parser key "num": Does not validate against any of the Union subtypes\\nSubtypes: '
    ...     "[<class 'int'>, <class 'NoneType'>]\\nErrors:\\n- Expected a <class 'int'>\\n"
    ...     "- Expected a <class 'NoneType'>\\nGiven value type: <class 'str'>\\nGiven value: abc")
    'num must be an integer or null, got abc'
    >>> simplify('Parser key "draws": Expected a <class \\'int\\'>. Got value: 1.5')
    'draws must be an integer, got 1.5'
    """
    text = " ".join(message.split())
    if (inner := INSIDE.fullmatch(text)) is not None:
        return f"{inner['where']}{simplify(inner['what'])}"
    found = UNION.fullmatch(text)
    if found is None:
        return _in_sentences(text)
    key, value = found["key"], found["value"]
    reasons = [reason.strip() for reason in found["reasons"].split(" - ")]
    given = [reason for reason in reasons if not reason.startswith("Expected a ")]
    if given:
        return _in_sentences(" or ".join(f"{key}: {reason}" if key else reason for reason in given))
    return f"{key or 'the value'} must be {_in_words(found['kinds'])}, got {value}"


def _in_sentences(text: str) -> str:
    """What jsonargparse says of single kinds, in words."""
    return SINGLE.sub(lambda part: f"{part['key']} must be {_in_words(part['kind'])}, got", text)


def _in_words(kinds: str) -> str:
    """The members of a union in words, from their names in Python."""
    choices = re.findall(r"Literal\[(.*?)\]", kinds)
    rest = re.sub(r"typing\.Literal\[.*?\]", "", kinds)
    words = (
        ["a list of " + ", ".join(choices) if "list[" in rest else "one of " + ", ".join(choices)] if choices else []
    )
    names = re.findall(r"<class '(?:[\w.]*\.)?(\w+)'>", rest)
    return " or ".join(dict.fromkeys([*words, *(WORDS.get(name, f"a {name}") for name in names)]))


def describe_error(error: Exception) -> str:
    """The message of an error on one line; of a kind that no check raises, its name too, and how to see more."""
    text = simplify(str(error))
    if isinstance(error, OSError) and isinstance(error.filename, str) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | TypeError | OSError | ImportError | FloatingPointError) and text:
        return text
    if len(text) > MAX_MESSAGE:
        text = f"{text[:MAX_MESSAGE]}…"
    return f"{type(error).__name__}: {text or 'no message'} (not expected; {TRACEBACK}=1 shows the traceback)"
