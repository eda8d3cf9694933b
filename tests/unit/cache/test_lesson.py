"""Lessons survive their way through other hands, or are refused."""

import json

from hypothesis import given
from hypothesis import strategies as st

from services.cache.domain.lesson import Lesson, unpack
from services.cache.domain.signals import FEATURES

keys = st.text("0123456789abcdef", min_size=64, max_size=64)
numbers = st.floats(-8, 8).map(lambda x: round(x, 5))
lessons = st.builds(
    Lesson,
    keys,
    keys,
    st.floats(0, 1e11),
    st.booleans(),
    st.none() | st.lists(numbers, min_size=len(FEATURES), max_size=len(FEATURES)).map(tuple),
    st.none() | st.floats(0, 1).map(lambda x: round(x, 6)),
)


@given(lessons)
def test_a_lesson_is_read_as_it_was_written(lesson):
    assert unpack(lesson.pack()) == lesson


@given(st.binary(max_size=200))
def test_other_bytes_are_no_lesson(data):
    assert unpack(data) is None


@given(
    lessons,
    st.sampled_from("vaebsfp"),
    st.sampled_from([None, "", "x" * 64, -1, 10**400, float("inf"), float("nan"), True, [], [1], ["a"] * 15, {}]),
)
def test_an_altered_field_is_refused_or_means_what_it_says(lesson, field, value):
    fields = {**json.loads(lesson.pack()), field: value}
    found = unpack(json.dumps(fields).encode())
    if found is None:
        return
    assert (field, value) in [("f", None), ("p", None), ("p", True), ("s", True), ("b", -1), ("v", True)]
