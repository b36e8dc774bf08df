"""Text with placeholders for the fields of a document: `{question}`, `{choices.text}`, `{premise:without_end}`, and
`{span1_text/target.span1_text}` where copies of the data name a field differently. Only what is listed here can be done to a
field, so that a task's file holds no code."""

import re
from collections.abc import Callable, Iterable, Mapping
from string import Formatter

from tokenizer.files import is_unicode

Fields = Mapping[str, object]


def _without_markup(text: str) -> str:
    """Clean a text of WikiHow's, as HellaSwag's are."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _connector(text: str) -> str:
    """Return the word that joins a sentence with its cause or its effect, as COPA's are."""
    words = {"cause": "because", "effect": "therefore"}
    if text not in words:
        raise ValueError(f'"{text}" is neither cause nor effect')
    return words[text]


def _with_highlights(text: str) -> str:
    """Return a news article and the points of its summary, as ReCoRD's are marked, each on a line of its own."""
    article, *points = text.strip().split("\n@highlight\n")
    return article + "\n\n" + "".join(f"  - {point}.\n" for point in points)


EDITS: Mapping[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lstrip": str.lstrip,
    "capitalize": str.capitalize,
    "lower_first": lambda text: text[:1].lower() + text[1:],
    "without_end": lambda text: text.strip()[:-1],
    "but_last_word": lambda text: text.rpartition(" ")[0],
    "last_word": lambda text: text.rpartition(" ")[2],
    "before_blank": lambda text: text.partition("_")[0],
    "after_blank": lambda text: text.partition("_")[2].strip(),
    "before_entity": lambda text: text.partition("@placeholder")[0],
    "after_entity": lambda text: text.partition("@placeholder")[2],
    "with_highlights": _with_highlights,
    "connector": _connector,
    "without_markup": _without_markup,
}
"""What may follow a field's name after a colon; without_end leaves out the last character, a blank is written _."""


def check_template(template: str) -> str:
    """Return a template whose placeholders can be read.

    Raises:
        ValueError: says what is wrong.
    """
    for _, name, edit, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not re.fullmatch(r"\w+(\.\w+)*(/\w+(\.\w+)*)*", name) or conversion:
            raise ValueError(f'"{{{name}}}" names no field; write {{field}}, {{field.inner}}, {{field/other}} or {{field:edit}}')
        for one in filter(None, (edit or "").split("|")):
            if one not in EDITS:
                raise ValueError(f'"{{{name}:{edit}}}": no edit is called "{one}"; there are {", ".join(EDITS)}')
    return template


def fill(template: str, fields: Fields, data_alone: bool = False) -> str:
    """Put the fields of a document into a template.

    Args:
        data_alone: leave out the template's own text, and put spaces between fields.

    Raises:
        ValueError: a field is missing, or no text or number.
    """
    return _filled(template, fields, {}, data_alone)


def _filled(template: str, fields: Fields, chosen: Fields, data_alone: bool) -> str:
    """Fill a template, with given values in place of some fields."""
    parts = []
    for literal, name, edit, _ in Formatter().parse(template):
        if not data_alone:
            parts.append(literal)
        if name is not None:
            parts.append(_edited(_text(chosen[name] if name in chosen else _value(name, fields), name), edit))
    return (" " if data_alone else "").join(parts)


def fill_each(template: str, fields: Fields, data_alone: bool = False) -> list[str]:
    """Fill a template of which one placeholder is of a field that is a list: a text for each of its values.

    Args:
        data_alone: as of `fill`.

    Raises:
        ValueError: none of its fields is a list, or several are; a field is missing, or no text or list of texts.
    """
    lists = _lists(template, fields)
    if len(lists) != 1:
        raise ValueError(f'of the fields in "{template}" one is to be a list, and {len(lists) or "none"} are')
    ((name, values),) = lists.items()
    return [_filled(template, fields, {name: value}, data_alone) for value in values]


def has_list(template: str, fields: Fields) -> bool:
    """Return whether a field of a template is a list.

    Raises:
        ValueError: a field is missing.
    """
    return bool(_lists(template, fields))


def _lists(template: str, fields: Fields) -> dict[str, Iterable[object]]:
    values = {name: _value(name, fields) for _, name, _, _ in Formatter().parse(template) if name is not None}
    return {name: value for name, value in values.items() if isinstance(value, list | tuple)}


def edited(text: str, edits: tuple[str, ...]) -> str:
    """Apply edits in their order."""
    for edit in edits:
        text = EDITS[edit](text)
    return text


def _edited(text: str, edit: str | None) -> str:
    return edited(text, tuple(filter(None, (edit or "").split("|"))))


def _value(name: str, fields: Fields) -> object:
    first, *others = name.split("/")
    for one in others:
        try:
            return _value_of(first, fields)
        except ValueError:
            first = one
    return _value_of(first, fields)


def _value_of(name: str, fields: Fields) -> object:
    value: object = fields
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            have = ", ".join(map(str, value)) if isinstance(value, Mapping) else "none"
            raise ValueError(f'no field "{name}"; fields here: {have}')
        value = value[part]
    return value


def _text(value: object, name: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise ValueError(f'field "{name}" is {type(value).__name__}, not text or a number')
    found = str(value)
    if not is_unicode(found):
        raise ValueError(f'field "{name}" has half of a character (a lone surrogate)')
    return found
