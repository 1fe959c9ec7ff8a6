"""Messages of errors on one line, in words: those of jsonargparse about unions, and of errors that no check raises."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

__all__ = ["TRACEBACK", "describe_error", "name_option", "simplify", "without_jargon"]

TRACEBACK = "OPENEDM_TRACEBACK"
"""The variable of the environment with which errors end in a traceback."""

TO_LOWER = ("batch_size", "options", "num_samples", "num_draws", "num", "images")
"""Options with which the memory of a command grows, the first that it has being the one to lower."""

MAX_MESSAGE = 500
"""The longest message of an error that is not expected."""

UNION = re.compile(
    r'(?:Parser key "(?P<key>[^"]*)": )?Does not validate against any of the Union subtypes '
    r"Subtypes: \[(?P<kinds>.*?)\] "
    r"Errors: - (?P<reasons>.*) Given value type: .*? Given value: (?P<value>.*)"
)
UNION_WORDS = "Does not validate against any of the Union subtypes"
INNER = re.compile(
    rf'Parser key "[^"]*": {UNION_WORDS} .*? Given value type: .*? Given value: .*?(?= - Expected| Given |$)'
)
"""A union inside another."""
NESTED = re.compile(r"NestedArg\(key='[^']*', val='?(.*?)'?\)")
ABSTRACT = re.compile(r"Expected an instantiatable class, but (?:[\w.]*\.)?(\w+) is abstract")
SINGLE = re.compile(
    r'Parser key "(?P<key>[^"]*)": Expected a (?P<kind><class \'[\w.]+\'>|typing\.Literal\[[^]]*\])\. Got value:'
)
UNKNOWN_CLASS = re.compile(r'(?:Parser key "(?P<key>[^"]*)": )?Expected a dot import path string: (?P<value>\S+)')
INSIDE = re.compile(r"(?P<where>Parser key \"[^\"]*\": Problem with given class_path '[^']*': )(?P<what>Parser key .*)")
PLACE = re.compile(
    r"Parser key [\"'](?P<key>[^\"']*)[\"']: (?:Problem with given class_path '(?:[\w.]*\.)?(?P<name>\w+)': )?"
)
IN_UNION = re.compile(r"(?P<key>[\w.]+): Problem with given class_path '(?:[\w.]*\.)?(?P<name>\w+)': ")
NO_FILE = re.compile(r"([\w.]+): Unable to load config '(.*?)' - .*")
REQUIRED = re.compile(r"(?<=\w: )the following arguments are required: (.*)")
WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
    "Sequence": "a list",
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
    text = _without_inner_unions(
        NESTED.sub(r"\1", ABSTRACT.sub(r"choose one of the \1 by its name first", _flat(message)))
    )
    if (inner := INSIDE.fullmatch(text)) is not None:
        return f"{inner['where']}{simplify(inner['what'])}"
    found = UNION.fullmatch(text)
    if found is None:
        return _in_sentences(text)
    key, value = found["key"], found["value"]
    reasons = [reason.strip() for reason in found["reasons"].split(" - ")]
    given = [reason for reason in reasons if not reason.startswith(("Expected a ", "Expected <", "Expected typing."))]
    if given:
        return _in_sentences(" or ".join(f"{key}: {reason}" if key else reason for reason in given))
    return f"{key or 'the value'} must be {_in_words(found['kinds'])}, got {value}"


def without_jargon(text: str) -> str:
    """A message that `simplify` made of one of jsonargparse, with the options and classes that it is about by name.

    >>> without_jargon("Parser key 'a': Problem with given class_path 'b.C': Option 'd' is not accepted")
    "a C: there is no option 'd'"
    >>> without_jargon("Parser key 'a': Problem with given class_path 'b.C': the following arguments are required: d")
    'a C: d must be given'
    >>> without_jargon("Group 'options' does not accept option 'imges'")
    "options: there is no option 'imges'"
    """
    text = PLACE.sub(lambda found: f"{found['key']}{' ' if found['name'] else ''}{found['name'] or ''}: ", text)
    text = IN_UNION.sub(r"\g<key> \g<name>: ", text)
    text = re.sub(r"(?<=: )Option '(\w+)' is not accepted", r"there is no option '\1'", text)
    text = re.sub(r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"\1: there is no option '\2'", text)
    text = NO_FILE.sub(r"\1 must be given by its options, which --\1.help lists, or a file of them, got \2", text)
    return REQUIRED.sub(r"\1 must be given", text)


def _flat(message: str) -> str:
    return " ".join(message.split())


def _without_inner_unions(text: str) -> str:
    """The text with the unions inside others in words, the innermost first."""
    while text.count(UNION_WORDS) > 1:
        start = text.rindex('Parser key "', 0, text.rindex(UNION_WORDS))
        found = INNER.match(text, start)
        if found is None:
            break
        text = f"{text[:start]}{simplify(found[0])}{text[found.end() :]}"
    return text


def _in_sentences(text: str) -> str:
    """What jsonargparse says of single kinds, in words."""
    text = UNKNOWN_CLASS.sub(
        lambda part: f"{part['key'] or 'it'} must be the name of a class, got {part['value']}", text
    )
    return SINGLE.sub(lambda part: f"{part['key']} must be {_in_words(part['kind'])}, got", text)


def _in_words(kinds: str) -> str:
    """The members of a union in words, from their names in Python."""
    choices = re.findall(r"Literal\[(.*?)\]", kinds)
    rest = re.sub(r"typing\.Literal\[.*?\]", "", kinds)
    words = (
        ["a list of " + ", ".join(choices) if "list[" in rest else "one of " + ", ".join(choices)] if choices else []
    )
    names = re.findall(r"<class '(?:[\w.]*\.)?(\w+)'>", rest)
    return " or ".join(dict.fromkeys([*words, *(WORDS.get(name, _with_article(name)) for name in names)]))


def _with_article(name: str) -> str:
    """
    >>> _with_article("Extractor")
    'an Extractor'
    """
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def describe_error(error: Exception, options: Collection[str] = ()) -> str:
    """The message of an error on one line; of a kind that no check raises, its name too, and how to see more.

    Args:
        error: what ended the command.
        options: the names of the command's options, of which one may be lowered where memory does not suffice.
    """
    text = simplify(str(error))
    if is_out_of_memory(error):
        return _out_of_memory(text, options)
    if isinstance(error, OSError) and isinstance(error.filename, str) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | TypeError | OSError | ImportError | FloatingPointError) and text:
        return text
    if len(text) > MAX_MESSAGE:
        text = f"{text[:MAX_MESSAGE]}…"
    return (
        f"{type(error).__name__}: {text or 'no message'} (not expected: please report it with what {TRACEBACK}=1 shows)"
    )


def name_option(text: str, values: Mapping[str, Any], given: Iterable[tuple[str, Any]] = ()) -> str:
    """An error about a part of an option with the whole option, such as `--sampler.levels.rho` for rho.

    >>> name_option("rho must be finite and > 0, got -1.0", {}, [("sampler.levels.rho", -1), ("seed", 3)])
    'sampler.levels.rho must be finite and > 0, got -1.0'

    Args:
        text: the message of an error.
        values: the command's options, of which one may be data of a `path`, or the source that data are read from.
        given: the dotted names of the options that the command was given, and their plain values.
    """
    word = re.match(r"\w+(?=[ =\[])", text)
    if word is None or word[0] in values:
        return text
    named = [(name, value) for name, value in given if name.rpartition(".")[2] == word[0]]
    found = {name for name, value in named if any(shown in text for shown in _shown(value))}
    if word[0] == "path":
        paths = {f"{name}.path": getattr(value, "path", None) for name, value in values.items()}
        paths |= {"source": values.get("source")}
        found |= {name for name, path in paths.items() if isinstance(path, str) and repr(path) in text}
    return f"{found.pop()}{text[word.end() :]}" if len(found) == 1 else text


def _shown(value: Any) -> list[str]:
    """How messages may show a plain value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return [
        str(value),
        repr(value),
        *([repr(float(value))] if number else [repr(tuple(value))] if isinstance(value, list) else []),
    ]


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, on the host or on a GPU: errors of Python, of numpy and of torch's allocators."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "Unable to allocate", "std::bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _out_of_memory(text: str, options: Collection[str]) -> str:
    """What memory did not suffice for, and the option to lower."""
    if text.startswith("out of memory: "):  # it says itself what to do
        return text
    found = next((name for name in TO_LOWER if name in options), None)
    lower = "options.batch_size" if found == "options" else found
    advice = "use smaller data" if lower is None else f"lower --{lower}"
    return f"out of memory: {advice}{f' ({text[:MAX_MESSAGE]})' if text else ''}"
