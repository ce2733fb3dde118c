"""Printable text can be encoded as UTF-8 and is left as it is where it could be already; JSON is ASCII and strict."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snl_runtime.text import printable, to_json


@given(st.text(st.characters(exclude_categories=[])))  # lone surrogates included
def test_any_text_becomes_text_that_utf_8_holds(text):
    assert printable(printable(text)) == printable(text) == printable(text).encode("utf-8").decode("utf-8")


@given(st.text())
def test_text_that_utf_8_holds_is_left_as_it_is(text):
    assert printable(text) == text


@given(st.binary())
def test_any_file_name_is_shown_as_a_lenient_utf_8_reader_shows_it(name):
    assert printable(name.decode("utf-8", "surrogateescape")) == name.decode("utf-8", "backslashreplace")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_plain_values_come_back_from_one_line_of_ascii(value):
    line = to_json(value)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == value


def test_names_that_are_not_utf_8_are_escaped_in_keys_and_values():
    name = os.fsdecode(b"a\xff")
    assert json.loads(to_json({name: [name, (name,)]})) == {"a\\xff": ["a\\xff", ["a\\xff"]]}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json([number])
