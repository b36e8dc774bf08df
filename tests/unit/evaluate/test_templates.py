import pytest

from pretrain.evaluate.templates import EDITS, check_template, edited, fill, fill_each, has_list

FIELDS = {
    "question": "Why?",
    "number": 3,
    "choices": {"text": ["a", "b"], "label": ["A", "B"]},
    "flag": True,
    "nothing": None,
    "half": "a\ud800",
}


def test_placeholders_are_fields_of_fields_with_edits():
    fields = {"premise": " It rained. ", "a": {"b": {"c": "Deep"}}, "n": 4}
    assert fill("{premise:without_end} because {a.b.c:lower_first} {n} {{n}}", fields) == "It rained because deep 4 {n}"
    assert fill("{a.b.c:lower_first|capitalize}", fields) == "Deep"
    assert fill("{flag} {span1/question}", FIELDS) == "true Why?", "JSON's true, and the first name that there is"
    assert fill_each("{choices.text}", FIELDS) == ["a", "b"]
    assert fill_each("{choices.label:lower_first}", FIELDS) == ["a", "b"]


@pytest.mark.parametrize(
    "edit, text, expected",
    [
        ("last_word", "in the end", "end"),
        ("but_last_word", "in the end", "in the"),
        ("before_blank", "Ann told Eve that _ won.", "Ann told Eve that "),
        ("after_blank", "Ann told Eve that _ won.", "won."),
        ("without_markup", " Cut [step] it [title] Then  go ", "Cut it. Then go"),
        ("connector", "cause", "because"),
        ("connector", "effect", "therefore"),
        ("lower_first", "", ""),
    ],
)
def test_edits(edit, text, expected):
    assert edited(text, (edit,)) == expected and edit in EDITS


@pytest.mark.parametrize(
    "template, says",
    [
        ("{0}{}", "names no field"),
        ("{a!r}", "names no field"),
        ("{a[0]}", "names no field"),
        ("{a.__class__.x y}", "names no field"),
        ("{a:shout}", 'no edit is called "shout"'),
        ("{a", "expected '}'"),
    ],
)
def test_a_template_that_cannot_be_read_is_refused(template, says):
    with pytest.raises(ValueError, match=says):
        check_template(template)


@pytest.mark.parametrize(
    "template, says",
    [
        ("{answer}", 'no field "answer"; fields here: question, number'),
        ("{choices.size}", "fields here: text, label"),
        ("{question.length}", "fields here: none"),
        ("{choices}", "is dict, not text"),
        ("{nothing}", "is NoneType, not text"),
        ("{half}", "half of a character"),
        ("{one/other.two}", 'no field "other.two"'),
    ],
)
def test_a_document_without_the_field_is_refused(template, says):
    with pytest.raises(ValueError, match=says):
        fill(check_template(template), FIELDS)


@pytest.mark.parametrize("template, lists", [("{question}", "none"), ("text", "none"), ("{choices.text}{choices.label}", "2")])
def test_what_is_no_list_is_refused(template, lists):
    with pytest.raises(ValueError, match=f"one is to be a list, and {lists} are"):
        fill_each(template, FIELDS)


def test_a_list_fills_a_template_once_for_each_of_its_values():
    texts = FIELDS["choices"]["text"]
    assert fill_each("{number}: {choices.text:capitalize}{{", FIELDS) == [
        f"{FIELDS['number']}: {text.capitalize()}{{" for text in texts
    ]
    assert fill_each("{number}: {choices.text}{{", FIELDS, data_alone=True) == [f"{FIELDS['number']} {text}" for text in texts]
    assert has_list("{number} {choices.text}", FIELDS) and not has_list("{number}", FIELDS)


def test_fields_reach_no_attributes():
    with pytest.raises(ValueError, match='no field "question.__class__"'):
        fill("{question.__class__}", FIELDS)
