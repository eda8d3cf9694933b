"""The written training data keeps its own rules."""

from collections import Counter
from pathlib import Path

import pytest

from training import data


def test_every_family_has_look_alikes_in_both_languages() -> None:
    for group in data.families():
        wordings = Counter((question.key, question.language) for question in group.questions)
        keys = {key for key, _ in wordings}
        assert len(keys) >= 2, group.topic
        assert all(wordings[key, language] >= 2 for key in keys for language in ("en", "es")), group.questions[0].key


def test_no_wording_has_two_answers() -> None:
    for group in data.families():
        keys: dict[tuple[str, str], set[str]] = {}
        for question in group.questions:
            keys.setdefault((question.text.casefold(), question.language), set()).add(question.key)
        assert [text for text, found in keys.items() if len(found) > 1] == []


def test_development_topics_are_there() -> None:
    assert {group.topic for group in data.families()} >= data.DEVELOPMENT_TOPICS


def test_a_question_before_any_intent_is_named_with_its_line(tmp_path: Path) -> None:
    tmp_path.joinpath("broken.txt").write_text("# a family\nno intent yet\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.txt:2"):
        data.families(tmp_path)
